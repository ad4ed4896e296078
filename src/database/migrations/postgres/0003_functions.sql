DO $$ BEGIN
IF to_regprocedure('get_token_stats(text)') IS NULL THEN
    CREATE FUNCTION get_token_stats(p_project_id text)
    RETURNS TABLE (total_tokens_in bigint, total_tokens_out bigint, total_cost_usd numeric, avg_tokens_per_run numeric)
    LANGUAGE sql STABLE AS $f$
        SELECT COALESCE(SUM(tokens_in), 0)::bigint, COALESCE(SUM(tokens_out), 0)::bigint,
            COALESCE(SUM(cost_usd), 0)::numeric, COALESCE(AVG(tokens_in + tokens_out), 0)::numeric
        FROM model_run_log WHERE project = p_project_id
    $f$;
END IF;
IF to_regprocedure('get_performance_stats(text)') IS NULL THEN
    CREATE FUNCTION get_performance_stats(p_project_id text)
    RETURNS TABLE (avg_confidence numeric, avg_latency_ms numeric, success_rate numeric)
    LANGUAGE sql STABLE AS $f$
        SELECT COALESCE(AVG(confidence), 0)::numeric, COALESCE(AVG(latency_ms), 0)::numeric,
            COALESCE(AVG((outcome = 'success')::int), 0)::numeric
        FROM model_run_log WHERE project = p_project_id
    $f$;
END IF;
IF to_regprocedure('increment_usage_count(uuid)') IS NULL THEN
    CREATE FUNCTION increment_usage_count(key_id uuid) RETURNS void LANGUAGE sql AS $f$
        UPDATE iris_api_keys SET usage_count = usage_count + 1, last_used_at = now() WHERE id = key_id
    $f$;
END IF;
END $$;
