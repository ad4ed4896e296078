//! The built-in origin: one suite over both databases, straight at it and through the cache.

use crate::support::api::{Api, default_routes, over_both};
use crate::support::golden::{self, Golden};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_what_the_data_says_past_a_hundred_rows() {
    over_both("", async |api: Api, golden: Golden| {
        let overview = api.get("/api/iris/overview").await;
        assert_eq!(overview.status, 200, "{}", overview.text());
        let overview = overview.json();
        let (metrics, projects) = golden.overview();
        assert_eq!(overview["metrics"], metrics);
        assert_eq!(overview["projects"], projects);
        assert_eq!(overview["anomalies"], json!([]));
        let events = overview["events"].as_array().unwrap();
        assert_eq!(events.len(), 50);
        assert_eq!(events[0]["message"], "event 0");
        assert_eq!(events[49]["message"], "event 49");

        let analytics = api.get("/api/iris/analytics").await.json();
        assert_eq!(analytics["success"], true);
        let data = &analytics["data"];
        assert_eq!(
            (&data["projectId"], &data["projectName"]),
            (&json!("alpha"), &json!("Alpha Project"))
        );
        let expected = golden.analytics();
        for (part, value) in expected.as_object().unwrap() {
            assert_eq!(&data[part], value, "{part}");
        }
        for list in ["modelRuns", "reflexions", "consensusDecisions"] {
            assert_eq!(data["recent"][list].as_array().unwrap().len(), 10, "{list}");
        }

        let history = api.get("/api/iris/alpha").await.json();
        let own: Vec<_> = golden
            .events
            .iter()
            .filter(|event| event.project == "alpha")
            .collect();
        assert_eq!(
            (&history["count"], &history["historical"]),
            (&json!(own.len()), &json!(true))
        );
        let metrics = &history["data"]["metrics"];
        let confidence = golden::rounded(golden::mean(own.iter().map(|event| event.confidence)));
        assert_eq!(metrics["avgConfidence"], confidence);
        let latency = golden::rounded(golden::mean(own.iter().map(|event| event.latency as f64)));
        assert_eq!(metrics["avgLatencyMs"], latency);
        let success = golden::mean(own.iter().map(|event| f64::from(u8::from(event.success))));
        assert_eq!(metrics["successRate"], golden::rounded(success));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_filtered_bounded_and_paged() {
    over_both("", async |api: Api, golden: Golden| {
        let patterns = api.get("/api/iris/patterns").await.json();
        assert_eq!(
            (&patterns["count"], &patterns["projectId"]),
            (&json!(50), &json!("alpha"))
        );
        assert_eq!(patterns["data"][0]["name"], "p0");
        let wanted =
            |(category, confidence): &&(&str, f64)| *category == "drift" && *confidence >= 0.5;
        let expected = golden.patterns.iter().filter(wanted).count();
        let some = api
            .get("/api/iris/patterns?category=drift&minConfidence=0.5&limit=1000")
            .await
            .json();
        assert_eq!(some["count"], expected);
        let from = iris_sidecar::database::stored_time(
            golden.now.minus(std::time::Duration::from_secs(10 * 3600)),
        );
        let some = api
            .get(&format!("/api/iris/patterns?fromDate={from}"))
            .await
            .json();
        assert_eq!(some["count"], 11);
        let some = api
            .get(&format!("/api/iris/patterns?toDate={from}&limit=1000"))
            .await
            .json();
        assert_eq!(some["count"], 50);

        for (target, total) in [("events", 150), ("reflexion", 120)] {
            let mut seen = std::collections::BTreeSet::new();
            for page in 1..=3 {
                let found = api
                    .get(&format!("/api/iris/{target}?page={page}&limit=60"))
                    .await
                    .json();
                assert_eq!(
                    (&found["total"], &found["page"], &found["limit"]),
                    (&json!(total), &json!(page), &json!(60))
                );
                let data = found["data"].as_array().unwrap();
                assert_eq!(found["hasMore"], page * 60 < total);
                seen.extend(
                    data.iter()
                        .map(|row| row["id"].as_str().unwrap().to_owned()),
                );
            }
            assert_eq!(seen.len(), total, "{target}");
            let beyond = api.get(&format!("/api/iris/{target}?page=9")).await.json();
            assert_eq!(
                (&beyond["data"], &beyond["hasMore"]),
                (&json!([]), &json!(false))
            );
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_data_gives_the_same_bytes_and_a_revalidation_is_304() {
    over_both("", async |api: Api, _| {
        for target in [
            "overview",
            "analytics",
            "patterns",
            "events",
            "reflexion",
            "alpha",
        ] {
            let target = format!("/api/iris/{target}");
            let first = api.get(&target).await;
            let again = api.get(&target).await;
            assert_eq!(first.body, again.body, "{target}");
            api.clock.advance(std::time::Duration::from_secs(61));
            let later = api.get(&target).await;
            let tag = first.header("etag").unwrap().to_owned();
            assert!(tag.starts_with("W/\""), "{tag}");
            assert_eq!(later.header("etag"), Some(tag.as_str()), "{target}");
            let cache =
                "private, max-age=30, s-maxage=60, stale-while-revalidate=120, stale-if-error=3600";
            assert_eq!(first.header("cache-control"), Some(cache));
            let short = api.get_with(&target, &[("if-none-match", &tag)]).await;
            assert_eq!((short.status, short.body.len()), (304, 0), "{target}");
            let head = [("authorization", format!("Bearer {}", api.key))];
            let head = api
                .send("HEAD", &target, &[("authorization", &head[0].1)], "")
                .await;
            assert_eq!(
                (head.status, head.header("etag")),
                (200, Some(tag.as_str()))
            );
        }
        let before = api
            .get("/api/iris/events")
            .await
            .header("etag")
            .unwrap()
            .to_owned();
        assert_eq!(
            api.post("/api/iris/events", &json!({"eventType": "x"}))
                .await
                .status,
            201
        );
        let after = api
            .get_with("/api/iris/events", &[("if-none-match", &before)])
            .await;
        assert_eq!(after.status, 200);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_open_their_own_project_and_nothing_else() {
    over_both("", async |api: Api, _| {
        let refused = async |fields: &[(&str, &str)]| {
            let found = api.send("GET", "/api/iris/overview", fields, "").await;
            assert_eq!(found.status, 401, "{fields:?}");
            let body = found.json();
            assert!(
                body["error"].is_string()
                    && body["statusCode"] == 401
                    && body["timestamp"].is_string(),
                "{body}"
            );
        };
        refused(&[]).await;
        refused(&[("x-api-key", &api.key)]).await;
        for wrong in [
            "",
            "Bearer ",
            "bearer x",
            "Bearer sk_live_short",
            "Bearer sk_test_0123456789012345678901234",
        ] {
            refused(&[("authorization", wrong)]).await;
        }
        refused(&[("authorization", &format!("bearer {}", api.key))]).await;
        refused(&[("authorization", &format!("Bearer {}x", api.key))]).await;
        let bare = api
            .send(
                "GET",
                "/api/iris/overview",
                &[("authorization", &api.key)],
                "",
            )
            .await;
        assert_eq!(bare.status, 200);
        for name in ["patterns", "evaluate", "anomalies"] {
            let found = api.get(&format!("/api/iris/{name}?projectId=beta")).await;
            assert_eq!(
                (found.status, &found.json()["error"]["code"]),
                (403, &json!("FORBIDDEN"))
            );
        }
        // Another project's name is one that is not there.
        for target in ["beta", "evaluat", "decisions", "sandbox", "a/b", ""] {
            let found = api.get(&format!("/api/iris/{target}")).await;
            let error = &found.json()["error"];
            assert_eq!(
                (found.status, &error["code"]),
                (404, &json!("NOT_FOUND")),
                "{target}"
            );
            let listed = error["details"]["endpoints"].as_array().unwrap();
            assert!(
                listed.contains(&json!("GET, HEAD /api/iris/evaluate")),
                "{error}"
            );
            assert!(
                listed.contains(&json!("POST /api/iris/model-run")),
                "{error}"
            );
            assert!(!found.text().contains("another project"), "{error}");
        }
        let listed = api.database.list_keys().await.unwrap();
        assert_eq!(listed.len(), 2);
        assert!(
            listed[0].is_active
                && api.key.starts_with(&listed[0].prefix)
                && listed[0].prefix.len() < 16
        );
        assert!(
            api.database
                .revoke_key(&api.other_key, api.clock.now())
                .await
                .unwrap()
        );
        assert!(
            !api.database
                .revoke_key(&api.other_key, api.clock.now())
                .await
                .unwrap()
        );
        refused(&[("authorization", &api.other_key)]).await;
        assert!(
            api.database
                .revoke_key(&listed[0].id, api.clock.now())
                .await
                .unwrap()
        );
        refused(&[("authorization", &api.key)]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_are_checked_whole_and_written_whole() {
    over_both("", async |api: Api, golden: Golden| {
        api.clock.advance(std::time::Duration::from_secs(1));
        let done = api.post("/api/iris/telemetry", &json!({"expertId": "e9", "confidence": 0.5, "latencyMs": 7, "outcome": "success", "metadata": {"a": [1]}, "unknown": 1})).await;
        assert_eq!(done.status, 201, "{}", done.text());
        assert_eq!(done.json(), json!({"success": true, "projectId": "alpha", "projectName": "Alpha Project", "expertId": "e9"}));
        let newest = &api.get("/api/iris/events?limit=1").await.json()["data"][0];
        assert_eq!((&newest["expertId"], &newest["metadata"], &newest["confidence"]), (&json!("e9"), &json!({"a": [1]}), &json!(0.5)));
        assert_eq!(newest["eventType"], "telemetry");

        let batch: Vec<Value> = (0..1000).map(|number| json!({"expertId": format!("e{number}")})).collect();
        let done = api.post("/api/iris/telemetry", &json!(batch)).await;
        assert_eq!((done.status, &done.json()["count"]), (201, &json!(1000)));
        assert_eq!(api.total().await, 150 + 1001);
        // One bad event among many: it is named, and nothing is written.
        let mut bad = batch.clone();
        bad[998] = json!({"expertId": "", "confidence": 2, "latencyMs": 1.5, "metadata": []});
        let refused = api.post("/api/iris/telemetry", &json!(bad)).await;
        assert_eq!(refused.status, 400);
        let error = &refused.json()["error"];
        assert_eq!((&error["code"], &error["statusCode"]), (&json!("VALIDATION_ERROR"), &json!(400)));
        let paths: Vec<&str> = error["details"]["issues"].as_array().unwrap().iter().map(|issue| issue["path"].as_str().unwrap()).collect();
        assert_eq!(paths, ["998.expertId", "998.confidence", "998.latencyMs", "998.metadata"]);
        let mut many = batch.clone();
        many.push(json!({"expertId": "x"}));
        for wrong in [json!(many), json!([]), json!("x"), json!({}), json!({"expertId": 7}), json!({"expertId": "a\u{0}b"}), json!({"expertId": "x", "metadata": {"a\u{0}": 1}})] {
            assert_eq!(api.post("/api/iris/telemetry", &wrong).await.status, 400, "{:.60}", wrong.to_string());
        }
        assert_eq!(api.post_text("/api/iris/telemetry", "{", "application/json").await.status, 400);
        assert_eq!(api.post_text("/api/iris/telemetry", "a=b", "application/x-www-form-urlencoded").await.status, 415);
        let large = format!("{{\"expertId\": \"x\", \"metadata\": {{\"a\": \"{}\"}}}}", "x".repeat(5 << 20));
        assert_eq!(api.post_text("/api/iris/telemetry", &large, "application/json").await.status, 413);
        assert_eq!(api.total().await, 150 + 1001);

        let done = api.post("/api/iris/events", &json!({"eventType": "deployed"})).await;
        assert_eq!((done.status, &done.json()["eventType"]), (201, &json!("deployed")));
        assert_eq!(api.post("/api/iris/events", &json!({})).await.status, 400);
        api.clock.advance(std::time::Duration::from_secs(1));
        let reflexion = json!({"reflexionType": "failure", "context": {"a": 1}, "outcome": "lost", "success": false, "impactScore": 0.25});
        let done = api.post("/api/iris/reflexion", &reflexion).await;
        assert_eq!((done.status, &done.json()["reflexionType"]), (201, &json!("failure")), "{}", done.text());
        let newest = &api.get("/api/iris/reflexion?limit=1").await.json()["data"][0];
        assert_eq!((&newest["context"], &newest["outcome"], &newest["success"]), (&json!({"a": 1}), &json!("lost"), &json!(false)));
        let refused = api.post("/api/iris/reflexion", &json!({"success": "yes"})).await.json();
        assert_eq!(refused["error"]["details"]["issues"].as_array().unwrap().len(), 4, "{refused}");
        drop(golden);
    })
    .await;
}

fn keys(value: &Value) -> Vec<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_members_of_answers_are_those_of_the_contract() {
    over_both("", async |api: Api, _| {
        let analytics = api.get("/api/iris/analytics").await.json();
        let recent = &analytics["data"]["recent"];
        for (list, expected) in [
            (
                "modelRuns",
                &[
                    "expertId",
                    "outcome",
                    "confidence",
                    "tokensUsed",
                    "costUsd",
                    "timestamp",
                ][..],
            ),
            (
                "reflexions",
                &["type", "success", "impactScore", "timestamp"],
            ),
            (
                "consensusDecisions",
                &["expertsCount", "confidence", "disagreement", "timestamp"],
            ),
        ] {
            assert_eq!(keys(&recent[list][0]), expected, "{list}");
        }
        let project = api.get("/api/iris/alpha").await.json();
        let evaluated = api.get("/api/iris/evaluate").await.json();
        assert_eq!(
            keys(&project),
            ["success", "data", "historical", "count", "timestamp"]
        );
        assert_eq!(keys(&evaluated), ["success", "data", "timestamp"]);
        assert_eq!(project["data"], evaluated["data"]);
        let metrics = &evaluated["data"]["metrics"];
        let measured = [
            "accuracy",
            "precision",
            "recall",
            "f1Score",
            "confidence",
            "timestamp",
        ];
        assert_eq!(keys(metrics)[..6], measured);
        // What nobody measured is null, and what was is a mean.
        assert!(metrics["recall"].is_null(), "{metrics}");
        assert!(
            metrics["confidence"].is_f64() && metrics["timestamp"].is_string(),
            "{metrics}"
        );
        let none = api.get("/api/iris/evaluate?toDate=2001-01-01").await.json();
        assert!(none["data"]["metrics"]["confidence"].is_null(), "{none}");
        let anomalies = api.get("/api/iris/anomalies?limit=5").await.json();
        assert_eq!(
            keys(&anomalies),
            ["success", "count", "data", "projectId", "timestamp"]
        );
        let listed = anomalies["data"].as_array().unwrap();
        assert_eq!(anomalies["count"], listed.len());
        let all = api.get("/api/iris/anomalies?limit=1000").await.json();
        let by_severity = async |severity: &str| {
            let target = format!("/api/iris/anomalies?limit=1000&severity={severity}");
            api.get(&target).await.json()["count"].as_u64().unwrap()
        };
        // Nothing in the data is well, and all of it is as ill.
        assert_eq!(all["count"], by_severity("x").await, "{all}");
        assert_eq!(by_severity("critical").await, 0);
        assert_eq!(api.get("/api/iris/anomalies?fromDate=x").await.status, 400);
        // The same bytes for the same data, and a tag that says so.
        let (plain, optimized) = (
            api.get("/api/iris/overview").await,
            api.get("/api/iris/overview-optimized").await,
        );
        assert_eq!(plain.body, optimized.body);
        let tag = optimized.header("etag").unwrap();
        assert_eq!(plain.header("etag").unwrap(), format!("W/{tag}"));
        let short = api
            .get_with("/api/iris/overview-optimized", &[("if-none-match", tag)])
            .await;
        assert_eq!(short.status, 304);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_and_decisions_are_stored_and_change_the_analytics() {
    over_both(&default_routes(), async |api: Api, _| {
        let analytics = async || api.get("/api/iris/analytics").await.json()["data"].clone();
        let before = analytics().await;
        let run = json!({"expertId": "e9", "outcome": "success", "confidence": 0.5, "tokensIn": 3, "tokensOut": 4, "costUsd": 0.25, "latencyMs": 7});
        api.clock.advance(std::time::Duration::from_secs(1));
        let done = api.post("/api/iris/model-run", &run).await;
        assert_eq!((done.status, &done.json()["expertId"]), (201, &json!("e9")));
        let after = analytics().await;
        let newest = &after["recent"]["modelRuns"][0];
        assert_eq!((&newest["tokensUsed"], &newest["expertId"]), (&json!(7), &json!("e9")));
        let count = |data: &Value, name: &str| data["overview"][name].as_i64().unwrap();
        assert_eq!(count(&after, "totalModelRuns"), count(&before, "totalModelRuns") + 1);
        let decision = json!({"contributingExperts": ["a", "b", "c"], "finalDecision": {"buy": true}, "confidence": 0.75, "disagreementScore": 0.5});
        let done = api.post("/api/iris/consensus", &decision).await;
        assert_eq!((done.status, &done.json()["expertsCount"]), (201, &json!(3)), "{}", done.text());
        let after = analytics().await;
        let newest = &after["recent"]["consensusDecisions"][0];
        assert_eq!((&newest["expertsCount"], &newest["disagreement"]), (&json!(3), &json!(0.5)));
        for (path, wrong, issues) in [
            ("model-run", json!({}), 1),
            ("model-run", json!({"expertId": "e", "tokensIn": -1, "costUsd": "much"}), 2),
            ("consensus", json!({}), 2),
            ("consensus", json!({"contributingExperts": [], "finalDecision": 1, "confidence": 2}), 2),
        ] {
            let refused = api.post(&format!("/api/iris/{path}"), &wrong).await;
            let told = &refused.json()["error"]["details"]["issues"];
            assert_eq!((refused.status, told.as_array().unwrap().len()), (400, issues), "{told}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_methods_paths_and_parameters_are_told() {
    over_both("", async |api: Api, _| {
        let found = api.post("/api/iris/overview", &json!({})).await;
        assert_eq!(
            (found.status, found.header("allow")),
            (405, Some("GET, HEAD, OPTIONS"))
        );
        assert_eq!(found.json(), json!({"error": "Method not allowed"}));
        let found = api.get("/api/iris/telemetry").await;
        assert_eq!(
            (found.status, found.header("allow")),
            (405, Some("POST, OPTIONS"))
        );
        let found = api.send("OPTIONS", "/api/iris/events", &[], "").await;
        assert_eq!(
            (found.status, found.header("access-control-allow-origin")),
            (204, Some("*"))
        );
        assert_eq!(
            found.header("access-control-allow-methods"),
            Some("GET, POST, PUT, DELETE, OPTIONS")
        );
        assert_eq!(api.get("/nowhere").await.status, 404);
        let found = api.get("/api/iris/events?page=0&limit=5000").await;
        assert_eq!(found.status, 400);
        assert_eq!(
            found.json()["error"]["details"]["issues"]
                .as_array()
                .unwrap()
                .len(),
            2
        );
        let counters = api.send("GET", "/api/metrics", &[], "").await.json();
        assert!(
            counters["database"]["totalQueries"].as_u64().unwrap() > 0,
            "{counters}"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_writes_and_then_reads_through_the_cache_finds_it() {
    over_both(&default_routes(), async |api: Api, _| {
        let count = async || {
            let found = api.get("/api/iris/analytics").await;
            let count = found.json()["data"]["overview"]["totalTelemetryEvents"]
                .as_i64()
                .unwrap();
            (count, found.cache().to_owned())
        };
        assert_eq!(count().await, (150, "MISS".to_owned()));
        assert_eq!(count().await, (150, "HIT".to_owned()));
        assert_eq!(api.get("/api/iris/overview").await.cache(), "MISS");
        assert_eq!(api.get("/api/iris/overview").await.cache(), "HIT");
        let done = api
            .post("/api/iris/telemetry", &json!({"expertId": "e"}))
            .await;
        assert_eq!(done.status, 201);
        // Gone, and stale.
        assert_eq!(count().await, (151, "MISS".to_owned()));
        assert_eq!(api.get("/api/iris/overview").await.cache(), "HIT-STALE");
        // Another key has answers of its own.
        let other = [("authorization", format!("Bearer {}", api.other_key))];
        let found = api
            .send(
                "GET",
                "/api/iris/analytics",
                &[("authorization", &other[0].1)],
                "",
            )
            .await;
        assert_eq!(
            (found.cache(), &found.json()["data"]["projectId"]),
            ("MISS", &json!("beta"))
        );
        // Unchanged data is confirmed.
        api.clock.advance(std::time::Duration::from_secs(200));
        let found = api.get("/api/iris/analytics").await;
        assert_eq!(found.cache(), "HIT-REVALIDATED", "{}", found.cache_status());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uses_of_keys_are_counted_and_written_at_the_end() {
    over_both("", async |mut api: Api, _| {
        for _ in 0..7 {
            api.get("/api/iris/patterns").await;
        }
        let database = api.database.clone();
        let sidecar = api.sidecar.take().unwrap();
        let stopping = move || {
            sidecar.drain();
            sidecar.join();
        };
        tokio::task::spawn_blocking(stopping).await.unwrap();
        let listed = database.list_keys().await.unwrap();
        assert_eq!(
            (listed[0].usage_count, listed[0].last_used_at.is_some()),
            (7, true)
        );
        assert_eq!(listed[1].usage_count, 0);
    })
    .await;
}
