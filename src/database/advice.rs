//! What would make the database faster, as SQL that an operator can read and run: indexes that the
//! contract names and that are missing, and on Postgres what its statistics say.

use super::{Database, DatabaseError, Statement};

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
    postgres: "SELECT json_build_array(COUNT(*))::text FROM pg_extension WHERE extname = \
        'pg_stat_statements'",
};

/// The statements that took most of the time.
const SLOWEST: Statement = Statement {
    table: "statistics",
    operation: "select",
    sqlite: "SELECT json_array('', 0, 0.0) WHERE 0",
    postgres: "SELECT json_build_array(left(regexp_replace(query, '\\s+', ' ', 'g'), 160), calls, mean_exec_time)::text
        FROM pg_stat_statements ORDER BY total_exec_time DESC LIMIT 5",
};

impl Database {
    /// Lines of SQL and of comments; none where there is nothing to do.
    pub async fn advice(&self) -> Result<Vec<String>, DatabaseError> {
        let mut lines = Vec::new();
        for missing in self.missing_indexes().await? {
            let (table, columns) = (missing.table, missing.columns);
            lines.push(format!("-- {table} has no index on ({columns})"));
            lines.extend(missing.statements);
        }
        let scans: Vec<(String, i64, i64)> = self.rows(&SCANS, vec![]).await?;
        for (table, scans, rows) in scans {
            lines.push(format!(
                "-- {table} was read from end to end {scans} times, {rows} rows \
                each: EXPLAIN what asks for it"
            ));
            lines.push(format!("ANALYZE {table};"));
        }
        let unused: Vec<(String, String, String)> = self.rows(&UNUSED, vec![]).await?;
        for (table, index, size) in unused {
            lines.push(format!(
                "-- of {table}, {size}, and not used since the statistics began: \
                if that is long ago"
            ));
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
