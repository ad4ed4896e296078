CREATE TABLE IF NOT EXISTS expert_signatures (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), project text NOT NULL, expert_id text NOT NULL,
    version text, prompt text, performance_metrics jsonb NOT NULL DEFAULT '{}', active bool NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now(), updated_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE IF NOT EXISTS iris_reports (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), project text NOT NULL, report_type text NOT NULL,
    health_score int NOT NULL CHECK (health_score BETWEEN 0 AND 100), overall_health text NOT NULL,
    report_data jsonb NOT NULL DEFAULT '{}', created_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE IF NOT EXISTS reflexion_bank (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), project text NOT NULL, expert_id text,
    reflexion_type text NOT NULL, context jsonb NOT NULL, outcome jsonb NOT NULL, success bool NOT NULL,
    confidence float8, impact_score float8 DEFAULT 0.5, reuse_count int NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE IF NOT EXISTS iris_telemetry (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), project_id text NOT NULL, expert_id text,
    confidence numeric, latency_ms int, outcome text, event_type text DEFAULT 'telemetry', severity text,
    message text, metadata jsonb, created_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE IF NOT EXISTS model_run_log (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), project text NOT NULL, expert_id text NOT NULL,
    confidence float8, latency_ms int, tokens_in int, tokens_out int, cost_usd numeric, outcome text,
    timestamp timestamptz NOT NULL DEFAULT now());
CREATE TABLE IF NOT EXISTS consensus_lineage (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), project text NOT NULL, contributing_experts jsonb,
    confidence float8, final_decision jsonb, disagreement_score float8,
    created_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE IF NOT EXISTS discovered_patterns (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), project_id text NOT NULL, name text NOT NULL,
    category text NOT NULL, frequency int NOT NULL DEFAULT 1, confidence float8, metadata jsonb,
    discovered_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE IF NOT EXISTS iris_api_keys (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), project_id text NOT NULL, project_name text NOT NULL,
    api_key_hash text NOT NULL UNIQUE, api_key_prefix text NOT NULL, label text,
    usage_count bigint NOT NULL DEFAULT 0, last_used_at timestamptz, is_active bool NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now(), revoked_at timestamptz);
