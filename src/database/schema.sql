CREATE TABLE IF NOT EXISTS expert_signatures (
    id TEXT PRIMARY KEY, project TEXT NOT NULL, expert_id TEXT NOT NULL, version TEXT, prompt TEXT,
    performance_metrics TEXT NOT NULL DEFAULT '{}', active INTEGER NOT NULL DEFAULT 1,
    created_at TEXT NOT NULL, updated_at TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS iris_reports (
    id TEXT PRIMARY KEY, project TEXT NOT NULL, report_type TEXT NOT NULL, health_score INTEGER NOT NULL,
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
CREATE INDEX IF NOT EXISTS expert_signatures_project ON expert_signatures (project);
CREATE INDEX IF NOT EXISTS expert_signatures_active ON expert_signatures (active) WHERE active;
CREATE INDEX IF NOT EXISTS model_run_log_project ON model_run_log (project, timestamp DESC);
CREATE INDEX IF NOT EXISTS reflexion_bank_project ON reflexion_bank (project, created_at DESC);
CREATE INDEX IF NOT EXISTS consensus_lineage_project ON consensus_lineage (project, created_at DESC);
CREATE INDEX IF NOT EXISTS iris_telemetry_project ON iris_telemetry (project_id, created_at DESC);
CREATE INDEX IF NOT EXISTS iris_telemetry_created ON iris_telemetry (created_at DESC);
CREATE INDEX IF NOT EXISTS iris_reports_created ON iris_reports (created_at DESC);
CREATE INDEX IF NOT EXISTS iris_reports_project ON iris_reports (project, created_at DESC);
