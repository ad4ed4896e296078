//! What would make the database faster, as SQL that an operator can read and run: indexes that the
//! contract names and that are missing, and on Postgres what its statistics say.

use super::{Database, DatabaseError, Statement};

/// The indexes as the migrations make them: the one list of them.
const SQLITE: &str = include_str!("migrations/sqlite/0002_indexes.sql");
const POSTGRES: &str = include_str!("migrations/postgres/0002_indexes.sql");

/// Each index: its table and the columns that it begins with.
const INDEXES: Statement = Statement {
    table: "statistics",
    operation: "select",
    sqlite: "SELECT json_array(master.tbl_name, (SELECT group_concat(name, ', ') FROM (
            SELECT name FROM pragma_index_info(master.name) ORDER BY seqno)))
        FROM sqlite_master master WHERE master.type = 'index' AND master.tbl_name NOT LIKE 'sqlite%'",
    postgres: "SELECT json_build_array(tables.relname, (SELECT string_agg(attname, ', ' ORDER BY place) FROM (
            SELECT attname, place FROM unnest(indexes.indkey::int[]) WITH ORDINALITY AS keys(number, place)
            JOIN pg_attribute ON attrelid = tables.oid AND attnum = number) columns))::text
        FROM pg_index indexes JOIN pg_class tables ON tables.oid = indexes.indrelid
        JOIN pg_namespace spaces ON spaces.oid = tables.relnamespace
        WHERE spaces.nspname = ANY (current_schemas(false)) AND indexes.indisvalid",
};

/// Tables that are read from end to end, with how often and how many rows each time.
const SCANS: Statement = Statement {
    table: "statistics",
    operation: "select",
    sqlite: "SELECT json_array('', 0, 0) WHERE 0",
    postgres: "SELECT json_build_array(relname, seq_scan, seq_tup_read / GREATEST(seq_scan, 1))::text
        FROM pg_stat_user_tables WHERE seq_scan > 100 AND seq_tup_read / GREATEST(seq_scan, 1) > 10000
        ORDER BY seq_tup_read DESC",
};

/// Indexes that nobody has used since the statistics began, with their size.
const UNUSED: Statement = Statement {
    table: "statistics",
    operation: "select",
    sqlite: "SELECT json_array('', '', '') WHERE 0",
    postgres: "SELECT json_build_array(relname, indexrelname, pg_size_pretty(pg_relation_size(used.indexrelid)))::text
        FROM pg_stat_user_indexes used JOIN pg_index USING (indexrelid)
        WHERE idx_scan = 0 AND NOT indisunique AND pg_relation_size(used.indexrelid) > 1048576
        ORDER BY pg_relation_size(used.indexrelid) DESC",
};

const HAS_STATEMENTS: Statement = Statement {
    table: "statistics",
    operation: "select",
    sqlite: "SELECT json_array(0)",
    postgres: "SELECT json_build_array(COUNT(*))::text FROM pg_extension WHERE extname = 'pg_stat_statements'",
};

/// The statements that took most of the time.
const SLOWEST: Statement = Statement {
    table: "statistics",
    operation: "select",
    sqlite: "SELECT json_array('', 0, 0.0) WHERE 0",
    postgres: "SELECT json_build_array(left(regexp_replace(query, '\\s+', ' ', 'g'), 160), calls, mean_exec_time)::text
        FROM pg_stat_statements ORDER BY total_exec_time DESC LIMIT 5",
};

/// `CREATE INDEX … ON table (columns) …;` taken apart; `DESC` changes neither what an index finds
/// nor which way it can be read.
fn parts(statement: &str) -> Option<(String, String)> {
    let (_, rest) = statement.split_once(" ON ")?;
    let (table, rest) = rest.split_once(" (")?;
    let (columns, _) = rest.split_once(')')?;
    Some((table.to_owned(), columns.replace(" DESC", "")))
}

impl Database {
    /// Lines of SQL and of comments; none where there is nothing to do.
    pub async fn advice(&self) -> Result<Vec<String>, DatabaseError> {
        let known: Vec<(String, Option<String>)> = self.rows(&INDEXES, vec![]).await?;
        let is_there = |table: &str, columns: &str| {
            known.iter().any(|(of, all)| {
                let all = all.as_deref().unwrap_or_default();
                let begins = all == columns || all.starts_with(&format!("{columns}, "));
                of == table && begins
            })
        };
        let contract = if self.is_embedded() { SQLITE } else { POSTGRES };
        let mut lines = Vec::new();
        for statement in contract.lines() {
            if let Some((table, columns)) = parts(statement)
                && !is_there(&table, &columns)
            {
                lines.push(format!(
                    "-- the contract asks for it, and {table} has none on ({columns})"
                ));
                // Without keeping writes waiting, where that can be said.
                lines.push(if self.is_embedded() {
                    statement.to_owned()
                } else {
                    statement.replace("CREATE INDEX", "CREATE INDEX CONCURRENTLY")
                });
            }
        }
        let scans: Vec<(String, i64, i64)> = self.rows(&SCANS, vec![]).await?;
        for (table, scans, rows) in scans {
            lines.push(format!("-- {table} was read from end to end {scans} times, {rows} rows each: EXPLAIN what asks for it"));
            lines.push(format!("ANALYZE {table};"));
        }
        let unused: Vec<(String, String, String)> = self.rows(&UNUSED, vec![]).await?;
        for (table, index, size) in unused {
            lines.push(format!("-- of {table}, {size}, and not used since the statistics began: if that is long ago"));
            lines.push(format!("-- DROP INDEX CONCURRENTLY {index};"));
        }
        let (has_statements,): (i64,) = self.one(&HAS_STATEMENTS, vec![]).await?;
        if has_statements > 0 {
            let slowest: Vec<(String, i64, f64)> = self.rows(&SLOWEST, vec![]).await?;
            for (query, calls, mean) in slowest {
                lines.push(format!("-- {calls} calls of {mean:.1} ms: {query}"));
            }
        }
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_databases_get_the_same_indexes_and_each_is_understood() {
        let all = |text: &str| text.lines().filter_map(parts).collect::<Vec<_>>();
        assert_eq!(all(SQLITE), all(POSTGRES));
        assert_eq!(all(SQLITE).len(), SQLITE.lines().count());
        let first = ("model_run_log".to_owned(), "project, timestamp".to_owned());
        assert!(all(SQLITE).contains(&first));
    }
}
