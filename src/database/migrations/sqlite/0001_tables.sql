CREATE TABLE IF NOT EXISTS expert_signatures (
    id TEXT PRIMARY KEY, project TEXT NOT NULL, expert_id TEXT NOT NULL, version TEXT, prompt TEXT,
    performance_metrics TEXT NOT NULL DEFAULT '{}', active INTEGER NOT NULL DEFAULT 1,
    created_at TEXT NOT NULL, updated_at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS iris_reports (
    id TEXT PRIMARY KEY, project TEXT NOT NULL, report_type TEXT NOT NULL,
    health_score INTEGER NOT NULL CHECK (health_score BETWEEN 0 AND 100),
    overall_health TEXT NOT NULL, report_data TEXT NOT NULL DEFAULT '{}', created_at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS reflexion_bank (
    id TEXT PRIMARY KEY, project TEXT NOT NULL, expert_id TEXT, reflexion_type TEXT NOT NULL,
    context TEXT NOT NULL, outcome TEXT NOT NULL, success INTEGER NOT NULL, confidence REAL,
    impact_score REAL NOT NULL DEFAULT 0.5, reuse_count INTEGER NOT NULL DEFAULT 0, created_at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS iris_telemetry (
    id TEXT PRIMARY KEY, project_id TEXT NOT NULL, expert_id TEXT, confidence REAL, latency_ms INTEGER,
    outcome TEXT, event_type TEXT NOT NULL DEFAULT 'telemetry', severity TEXT, message TEXT,
    metadata TEXT NOT NULL DEFAULT '{}', created_at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS model_run_log (
    id TEXT PRIMARY KEY, project TEXT NOT NULL, expert_id TEXT NOT NULL, confidence REAL, latency_ms INTEGER,
    tokens_in INTEGER, tokens_out INTEGER, cost_usd REAL, outcome TEXT, timestamp TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS consensus_lineage (
    id TEXT PRIMARY KEY, project TEXT NOT NULL, contributing_experts TEXT NOT NULL DEFAULT '[]',
    confidence REAL, final_decision TEXT NOT NULL DEFAULT '{}', disagreement_score REAL, created_at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS discovered_patterns (
    id TEXT PRIMARY KEY, project_id TEXT NOT NULL, name TEXT NOT NULL, category TEXT NOT NULL,
    frequency INTEGER NOT NULL DEFAULT 1, confidence REAL, metadata TEXT NOT NULL DEFAULT '{}',
    discovered_at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS iris_api_keys (
    id TEXT PRIMARY KEY, project_id TEXT NOT NULL, project_name TEXT NOT NULL,
    api_key_hash TEXT NOT NULL UNIQUE, api_key_prefix TEXT NOT NULL, label TEXT,
    usage_count INTEGER NOT NULL DEFAULT 0, last_used_at TEXT, is_active INTEGER NOT NULL DEFAULT 1,
    created_at TEXT NOT NULL, revoked_at TEXT);
