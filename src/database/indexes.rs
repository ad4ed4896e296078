//! The indexes of the contract: which are missing, by what they index and not by their names.

use super::{Database, DatabaseError, Statement};

/// The one list of them, one a line. What is included is what aggregates read: they are answered
/// from the index alone.
const CONTRACT: &str = include_str!("indexes.sql");

/// Each index, as [`Known`].
const KNOWN: Statement = Statement {
    table: "statistics",
    operation: "select",
    sqlite: "SELECT json_array(master.tbl_name, master.name, json('true'),
            json(iif(master.sql LIKE '% WHERE %', 'true', 'false')),
            COALESCE((SELECT group_concat(name, ', ') FROM (
                SELECT name FROM pragma_index_info(master.name) ORDER BY seqno)), ''))
        FROM sqlite_master master WHERE master.type = 'index' AND master.tbl_name NOT LIKE 'sqlite%'",
    postgres: "SELECT json_build_array(tables.relname, names.relname, indexes.indisvalid, indexes.indpred IS NOT NULL,
            COALESCE((SELECT string_agg(attname, ', ' ORDER BY place) FROM (
                SELECT attname, place FROM unnest(indexes.indkey::int[]) WITH ORDINALITY AS keys(number, place)
                JOIN pg_attribute ON attrelid = tables.oid AND attnum = number) columns), ''))::text
        FROM pg_index indexes JOIN pg_class tables ON tables.oid = indexes.indrelid
        JOIN pg_class names ON names.oid = indexes.indexrelid
        JOIN pg_namespace spaces ON spaces.oid = tables.relnamespace
        WHERE spaces.nspname = ANY (current_schemas(false))",
};

/// One index of the contract that the database does not have.
#[derive(Debug, PartialEq)]
pub struct Missing {
    pub table: String,
    pub columns: String,
    /// What makes it, one statement after another.
    pub statements: Vec<String>,
}

/// An index that is there: table, name, whether it is whole, whether it is of some rows only,
/// columns.
type Known = (String, String, bool, bool, String);

/// One line of the list taken apart.
struct Wanted {
    name: String,
    table: String,
    is_partial: bool,
    /// With what is included. `DESC` changes neither what an index finds nor which way it is read.
    columns: String,
}

fn wanted(line: &str) -> Option<Wanted> {
    let (begin, rest) = line.split_once(" ON ")?;
    let (_, name) = begin.rsplit_once(' ')?;
    let (table, rest) = rest.split_once(" (")?;
    let columns = rest.replace(") INCLUDE (", ", ").replace(" DESC", "");
    let (columns, _) = columns.split_once(')')?;
    Some(Wanted {
        name: name.to_owned(),
        table: table.to_owned(),
        is_partial: rest.contains(" WHERE "),
        columns: columns.to_owned(),
    })
}

impl Wanted {
    /// Whether this one does as well.
    fn is_done_by(&self, (table, _, is_whole, is_partial, columns): &Known) -> bool {
        let rest = columns.strip_prefix(self.columns.as_str());
        let begins = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(", "));
        *table == self.table && *is_whole && (self.is_partial || !is_partial) && begins
    }
}

impl Database {
    /// What of the contract no index does. Longer ones that begin so are as good.
    pub async fn missing_indexes(&self) -> Result<Vec<Missing>, DatabaseError> {
        let known: Vec<Known> = self.rows(&KNOWN, vec![]).await?;
        let is_there = |wanted: &Wanted| known.iter().any(|index| wanted.is_done_by(index));
        let missing = CONTRACT.lines().filter_map(|line| {
            let wanted = wanted(line).filter(|wanted| !is_there(wanted))?;
            let mut statements = Vec::new();
            if self.is_embedded() {
                // It has no INCLUDE: further columns of the key do the same.
                statements.push(line.replace(") INCLUDE (", ", "));
            } else {
                // What was broken off leaves an index that nothing uses and that holds the name.
                let is_broken = |name: &str| known.iter().any(|of| of.1 == name && !of.2);
                if is_broken(&wanted.name) {
                    statements.push(format!("DROP INDEX CONCURRENTLY {};", wanted.name));
                }
                // Without keeping writes waiting.
                statements.push(line.replace("CREATE INDEX", "CREATE INDEX CONCURRENTLY"));
            }
            Some(Missing {
                table: wanted.table,
                columns: wanted.columns,
                statements,
            })
        });
        Ok(missing.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_of_the_contract_is_understood() {
        let all: Vec<Wanted> = CONTRACT.lines().filter_map(wanted).collect();
        assert_eq!(all.len(), CONTRACT.lines().count());
        let has = |name: &str, columns: &str| {
            all.iter()
                .any(|of| of.name == name && of.columns == columns)
        };
        assert!(has("model_run_log_expert_idx", "expert_id"));
        assert!(has("iris_api_keys_active_idx", "is_active"));
        assert!(has(
            "iris_telemetry_covering_idx",
            "project_id, created_at, confidence, latency_ms, outcome, severity"
        ));
    }
}
