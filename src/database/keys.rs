//! The key table: who may ask, and how often they did. A key itself is seen when it is made, and
//! never kept: the table has its SHA-256.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::clock::Timestamp;

use super::{Database, DatabaseError, Param, Statement, stored_time};

const TABLE: &str = "iris_api_keys";

/// What every key begins with, and how many characters it has after that at least.
const PREFIX: &str = "sk_live_";
const LEAST: usize = 21;

/// Characters of a key that may be shown.
const SHOWN: usize = 12;

const FIND: Statement = Statement {
    table: TABLE,
    operation: "select",
    sqlite: "SELECT json_array(id, project_id, project_name) FROM iris_api_keys
        WHERE api_key_hash = $1 AND is_active AND revoked_at IS NULL",
    postgres: "SELECT json_build_array(id, project_id, project_name)::text FROM iris_api_keys
        WHERE api_key_hash = $1 AND is_active AND revoked_at IS NULL",
};

const CREATE: Statement = Statement {
    table: TABLE,
    operation: "insert",
    sqlite: "INSERT INTO iris_api_keys (id, project_id, project_name, api_key_hash, api_key_prefix, label, created_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7)",
    postgres: "INSERT INTO iris_api_keys (id, project_id, project_name, api_key_hash, api_key_prefix, label, created_at)
        VALUES ($1::uuid, $2, $3, $4, $5, $6, $7::timestamptz)",
};

/// By its id, by itself (its hash) or by the characters that are shown of it, where these are
/// one's.
const REVOKE: Statement = Statement {
    table: TABLE,
    operation: "update",
    sqlite: "UPDATE iris_api_keys SET is_active = 0, revoked_at = $2
        WHERE is_active AND (id = $1 OR api_key_hash = $3 OR (api_key_prefix = $1
            AND (SELECT COUNT(*) FROM iris_api_keys WHERE api_key_prefix = $1 AND is_active) = 1))",
    postgres: "UPDATE iris_api_keys SET is_active = false, revoked_at = $2::timestamptz
        WHERE is_active AND (id::text = $1 OR api_key_hash = $3 OR (api_key_prefix = $1
            AND (SELECT COUNT(*) FROM iris_api_keys WHERE api_key_prefix = $1 AND is_active) = 1))",
};

/// The digest of the one that [`REVOKE`] would revoke.
const DIGEST: Statement = Statement {
    table: TABLE,
    operation: "select",
    sqlite: "SELECT json_array(api_key_hash) FROM iris_api_keys
        WHERE is_active AND (id = $1 OR api_key_hash = $2 OR (api_key_prefix = $1
            AND (SELECT COUNT(*) FROM iris_api_keys WHERE api_key_prefix = $1 AND is_active) = 1))",
    postgres: "SELECT json_build_array(api_key_hash)::text FROM iris_api_keys
        WHERE is_active AND (id::text = $1 OR api_key_hash = $2 OR (api_key_prefix = $1
            AND (SELECT COUNT(*) FROM iris_api_keys WHERE api_key_prefix = $1 AND is_active) = 1))",
};

const LIST: Statement = Statement {
    table: TABLE,
    operation: "select",
    sqlite: "SELECT json_object('id', id, 'project_id', project_id, 'project_name', project_name, 'prefix', api_key_prefix,
            'label', label, 'usage_count', usage_count, 'last_used_at', last_used_at,
            'is_active', json(iif(is_active, 'true', 'false')), 'created_at', created_at)
        FROM iris_api_keys ORDER BY project_id, created_at, id",
    postgres: r#"SELECT json_build_object('id', id, 'project_id', project_id, 'project_name', project_name, 'prefix', api_key_prefix,
            'label', label, 'usage_count', usage_count,
            'last_used_at', to_char(last_used_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'), 'is_active', is_active,
            'created_at', to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'))::text
        FROM iris_api_keys ORDER BY project_id, created_at, id"#,
};

const USED: Statement = Statement {
    table: TABLE,
    operation: "update",
    sqlite: "UPDATE iris_api_keys SET usage_count = usage_count + $2, last_used_at = $3 WHERE id \
        = $1",
    postgres: "UPDATE iris_api_keys SET usage_count = usage_count + $2, last_used_at = \
        $3::timestamptz WHERE id = $1::uuid",
};

/// Whose key it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    pub key_id: String,
    pub project_id: String,
    pub project_name: String,
}

/// A key as it is listed.
#[derive(Clone, Debug, Deserialize)]
pub struct Listed {
    pub id: String,
    pub project_id: String,
    pub project_name: String,
    pub prefix: String,
    pub label: Option<String>,
    pub usage_count: i64,
    pub last_used_at: Option<String>,
    pub is_active: bool,
    pub created_at: String,
}

/// Whether a text can be a key at all.
pub fn is_well_formed(key: &str) -> bool {
    key.strip_prefix(PREFIX)
        .is_some_and(|rest| rest.len() >= LEAST && rest.bytes().all(|byte| byte.is_ascii_graphic()))
}

fn hash(key: &str) -> String {
    hex::encode(Sha256::digest(key))
}

impl Database {
    /// Whose this key is; `None` for one that is unknown, revoked or not active.
    pub async fn find_key(&self, key: &str) -> Result<Option<Principal>, DatabaseError> {
        let found = self
            .rows::<(String, String, String)>(&FIND, vec![Param::Text(hash(key))])
            .await?;
        let found = found.into_iter().next();
        Ok(found.map(|(key_id, project_id, project_name)| Principal {
            key_id,
            project_id,
            project_name,
        }))
    }

    /// Makes a key: 32 random bytes. This is the only time that anybody sees it.
    pub async fn create_key(
        &self,
        project: &str,
        name: &str,
        label: Option<&str>,
        now: Timestamp,
    ) -> Result<String, DatabaseError> {
        // Of each UUID 122 bits are random, by the system's generator: three give 32 bytes of it.
        let mut random = Sha256::new();
        for _ in 0..3 {
            random.update(Uuid::new_v4().as_bytes());
        }
        let key = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(random.finalize()));
        let parameters = vec![
            Param::Text(Uuid::new_v4().to_string()),
            project.into(),
            name.into(),
            Param::Text(hash(&key)),
            key[..SHOWN].into(),
            Param::Maybe(label.map(str::to_owned)),
            Param::Text(stored_time(now)),
        ];
        self.write(&CREATE, vec![parameters]).await?;
        Ok(key)
    }

    /// Revokes a key by its id, by itself, or by what is shown of it; whether there was one.
    pub async fn revoke_key(&self, key: &str, now: Timestamp) -> Result<bool, DatabaseError> {
        let parameters = vec![
            key.into(),
            Param::Text(stored_time(now)),
            Param::Text(hash(key)),
        ];
        Ok(self.write(&REVOKE, vec![parameters]).await? > 0)
    }

    /// The SHA-256 of an active key, as hexadecimal digits, by its id, by itself, or by what is
    /// shown of it; `None` where there is not exactly one.
    pub async fn digest_of_key(&self, key: &str) -> Result<Option<String>, DatabaseError> {
        let parameters = vec![key.into(), Param::Text(hash(key))];
        let found = self.rows::<(String,)>(&DIGEST, parameters).await?;
        Ok(found.into_iter().next().map(|(digest,)| digest))
    }

    pub async fn list_keys(&self) -> Result<Vec<Listed>, DatabaseError> {
        self.rows(&LIST, Vec::new()).await
    }

    /// Adds uses to keys, by their ids.
    pub async fn add_uses(
        &self,
        uses: Vec<(String, u64)>,
        now: Timestamp,
    ) -> Result<(), DatabaseError> {
        let lists = uses.into_iter().map(|(key, count)| {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            vec![
                Param::Text(key),
                Param::Int(count),
                Param::Text(stored_time(now)),
            ]
        });
        self.write(&USED, lists.collect()).await.map(drop)
    }
}
