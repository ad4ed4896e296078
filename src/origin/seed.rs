//! Demo data: 8 projects, 60 experts, 20,000 runs, the same on every machine but for their dates.
//!
//! The database makes the rows itself; `n * prime % m` gives cheap numbers that look unrelated.

use crate::clock::Timestamp;
use crate::database::{Database, DatabaseError, Statement};

const COUNT: Statement = Statement {
    table: "expert_signatures",
    operation: "select",
    sqlite: "SELECT json_array(COUNT(*)) FROM (SELECT 1 FROM expert_signatures LIMIT 1)",
    postgres: "SELECT json_build_array(COUNT(*))::text FROM (SELECT 1 FROM expert_signatures LIMIT 1) one",
};

/// The project of the demo key.
const PROJECT: (&str, &str) = ("nfl-predictor", "NFL Predictor");

const PROJECTS: &str = "
    CREATE TEMP TABLE demo_project (number INTEGER PRIMARY KEY, name TEXT NOT NULL, quality REAL NOT NULL)";

const PROJECT_ROWS: &str = "
    INSERT INTO demo_project VALUES
    (0, 'nfl-predictor', 0.86), (1, 'clinical-notes', 0.91), (2, 'support-triage', 0.83), (3, 'fraud-watch', 0.78),
    (4, 'supply-forecast', 0.71), (5, 'ad-bidding', 0.64), (6, 'contract-review', 0.82), (7, 'energy-load', 0.55)";

const EXPERTS: &str = "
    WITH RECURSIVE row(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM row WHERE n < 59)
    INSERT INTO expert_signatures
    SELECT printf('%08x-0000-4000-8000-%012x', n, n * 7919), name, printf('expert-%02d', n), printf('1.%d.0', n % 5),
        'You are expert ' || n || ' of ' || name || '.',
        json_object(CASE number WHEN 0 THEN 'win_rate' WHEN 1 THEN 'clinical_accuracy' WHEN 5 THEN 'roi' ELSE 'accuracy' END,
            round(quality + (n * 31 % 13 - 6) / 200.0, 3)),
        1, strftime('%Y-%m-%dT%H:%M:%fZ', 'now', printf('-%d days', 30 + n)),
        strftime('%Y-%m-%dT%H:%M:%fZ', 'now', printf('-%d hours', n))
    FROM row JOIN demo_project ON number = n % 8";

const REPORTS: &str = "
    WITH RECURSIVE row(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM row WHERE n < 959)
    INSERT INTO iris_reports
    SELECT printf('%08x-0001-4000-8000-%012x', n, n * 7919), name, CASE n % 3 WHEN 0 THEN 'daily' ELSE 'evaluation' END,
        CAST(quality * 100 + n * 17 % 9 - 4 AS INTEGER),
        CASE WHEN quality >= 0.8 THEN 'healthy' WHEN quality >= 0.6 THEN 'warning' ELSE 'critical' END,
        '{}', strftime('%Y-%m-%dT%H:%M:%fZ', 'now', printf('-%d minutes', n * 45))
    FROM row JOIN demo_project ON number = n % 8";

const REFLEXIONS: &str = "
    WITH RECURSIVE row(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM row WHERE n < 2399)
    INSERT INTO reflexion_bank
    SELECT printf('%08x-0002-4000-8000-%012x', n, n * 7919), name, printf('expert-%02d', n % 60),
        CASE n * 13 % 4 WHEN 0 THEN 'failure_analysis' WHEN 1 THEN 'success_pattern' WHEN 2 THEN 'prompt_revision' ELSE 'calibration' END,
        json_object('run', n), json_object('changed', json(iif(n % 2, 'true', 'false'))),
        n * 29 % 100 < quality * 100, round(0.5 + n * 37 % 50 / 100.0, 2), round(n * 41 % 100 / 100.0, 2), n * 7 % 12,
        strftime('%Y-%m-%dT%H:%M:%fZ', 'now', printf('-%d minutes', n * 20))
    FROM row JOIN demo_project ON number = n % 8";

const TELEMETRY: &str = "
    WITH RECURSIVE row(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM row WHERE n < 3999)
    INSERT INTO iris_telemetry
    SELECT printf('%08x-0003-4000-8000-%012x', n, n * 7919), name, printf('expert-%02d', n % 60),
        round(0.6 + n * 23 % 40 / 100.0, 2), 80 + n * 53 % 900, iif(n * 29 % 100 < quality * 100, 'success', 'failure'),
        CASE n * 11 % 5 WHEN 0 THEN 'drift' WHEN 1 THEN 'evaluation' ELSE 'telemetry' END,
        CASE n * 19 % 10 WHEN 0 THEN 'critical' WHEN 1 THEN 'warning' WHEN 2 THEN 'warning' ELSE 'info' END,
        printf('Run of expert %d in %s', n % 60, name), json_object('batch', n / 50),
        strftime('%Y-%m-%dT%H:%M:%fZ', 'now', printf('-%d seconds', n * 190))
    FROM row JOIN demo_project ON number = n % 8";

const RUNS: &str = "
    WITH RECURSIVE row(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM row WHERE n < 19999)
    INSERT INTO model_run_log
    SELECT printf('%08x-0004-4000-8000-%012x', n, n * 7919), name, printf('expert-%02d', n % 60),
        round(0.55 + n * 23 % 45 / 100.0, 2), 120 + n * 53 % 1400, 200 + n * 67 % 3000, 50 + n * 71 % 900,
        round((200 + n * 67 % 3000) * 0.000003 + (50 + n * 71 % 900) * 0.000015, 6),
        iif(n * 29 % 100 < quality * 100, 'success', 'failure'),
        strftime('%Y-%m-%dT%H:%M:%fZ', 'now', printf('-%d seconds', n * 97))
    FROM row JOIN demo_project ON number = n % 8";

const CONSENSUS: &str = "
    WITH RECURSIVE row(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM row WHERE n < 1199)
    INSERT INTO consensus_lineage
    SELECT printf('%08x-0005-4000-8000-%012x', n, n * 7919), name,
        CASE n % 3 WHEN 0 THEN json_array(printf('expert-%02d', n % 60), printf('expert-%02d', (n + 8) % 60))
        ELSE json_array(printf('expert-%02d', n % 60), printf('expert-%02d', (n + 8) % 60), printf('expert-%02d', (n + 16) % 60)) END,
        round(0.6 + n * 43 % 40 / 100.0, 2), json_object('choice', n % 4), round(n * 47 % 60 / 100.0, 2),
        strftime('%Y-%m-%dT%H:%M:%fZ', 'now', printf('-%d minutes', n * 35))
    FROM row JOIN demo_project ON number = n % 8";

const PATTERNS: &str = "
    WITH RECURSIVE row(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM row WHERE n < 479)
    INSERT INTO discovered_patterns
    SELECT printf('%08x-0006-4000-8000-%012x', n, n * 7919), name, printf('pattern-%03d', n),
        CASE n * 13 % 3 WHEN 0 THEN 'drift' WHEN 1 THEN 'seasonal' ELSE 'regression' END, 1 + n * 31 % 40,
        round(0.5 + n * 37 % 50 / 100.0, 2), json_object('window', n % 7),
        strftime('%Y-%m-%dT%H:%M:%fZ', 'now', printf('-%d minutes', n * 90))
    FROM row JOIN demo_project ON number = n % 8";

const DONE: &str = "DROP TABLE demo_project";

/// Fills a database that holds no expert, and makes a key for it; one that does is left as it is.
pub async fn if_empty(
    database: &Database,
    now: Timestamp,
) -> Result<Option<String>, DatabaseError> {
    let (experts,) = database.one::<(i64,)>(&COUNT, vec![]).await?;
    if experts > 0 {
        return Ok(None);
    }
    let statements = [
        PROJECTS,
        PROJECT_ROWS,
        EXPERTS,
        REPORTS,
        REFLEXIONS,
        TELEMETRY,
        RUNS,
        CONSENSUS,
        PATTERNS,
        DONE,
    ];
    database.script(&statements).await?;
    let (project, name) = PROJECT;
    let key = database
        .create_key(project, name, Some("demo"), now)
        .await?;
    Ok(Some(key))
}
