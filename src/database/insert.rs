//! Rows into a table: JSON objects, all of them in one statement.

use serde_json::Value;

use super::pools::Step;
use super::{Database, DatabaseError, Param};

/// A table, and which members of the objects become its columns.
#[derive(Clone, Copy, Debug)]
pub struct Insert {
    pub table: &'static str,
    /// Of values: text, numbers, booleans.
    pub columns: &'static [&'static str],
    /// Of JSON, whatever it is.
    pub documents: &'static [&'static str],
}

impl Insert {
    /// `$1` is a JSON array of the rows.
    fn sql(&self, is_embedded: bool) -> String {
        let Self {
            table,
            columns,
            documents,
        } = self;
        let all = [*columns, *documents].concat().join(", ");
        if !is_embedded {
            return format!(
                "INSERT INTO {table} ({all}) SELECT {all} FROM \
                    jsonb_populate_recordset(NULL::{table}, $1::text::jsonb)"
            );
        }
        let columns = columns.iter().map(|name| format!("value ->> '{name}'"));
        let documents = documents.iter().map(|name| format!("value -> '{name}'"));
        let values: Vec<String> = columns.chain(documents).collect();
        format!(
            "INSERT INTO {table} ({all}) SELECT {} FROM json_each($1)",
            values.join(", ")
        )
    }
}

impl Database {
    /// Writes the rows of several tables in one transaction: all of them, or none. Durable when it
    /// returns.
    pub async fn insert(
        &self,
        parts: Vec<(&'static Insert, Vec<Value>)>,
    ) -> Result<(), DatabaseError> {
        let Some((first, _)) = parts.first() else {
            return Ok(());
        };
        let table = first.table;
        let steps = parts.into_iter().map(|(insert, rows)| Step {
            sql: insert.sql(self.is_embedded()).into(),
            parameters: vec![Param::Text(Value::Array(rows).to_string())],
        });
        self.carry_out(table, "insert", steps.collect())
            .await
            .map(drop)
    }
}
