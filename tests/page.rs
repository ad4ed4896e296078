//! The live page in a real browser, with live traffic.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::browser::Browser;
use crate::support::{Client, Fixture, numbered, route};

#[tokio::test(flavor = "multi_thread")]
async fn numbers_move_explain_answers_and_a_dry_purge_counts() {
    let fixture = Fixture::start(&route("ttl = \"1h\"\ngroups = [\"g\"]"), |seen| {
        numbered(seen, &[])
    })
    .await;
    let (address, admin) = (fixture.sidecar().address, fixture.sidecar().admin_address);
    let reading = Arc::new(AtomicBool::new(true));
    let reader = {
        let reading = Arc::clone(&reading);
        tokio::spawn(async move {
            let mut number = 0;
            let mut client = Client::connect(address).await;
            while reading.load(Ordering::Relaxed) {
                number += 1;
                client.ask("GET", &format!("/{}", number % 20), &[]).await;
                client.ask("POST", "/write", &[]).await;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
    };
    let mut page = Browser::open(&format!("http://{admin}/")).await;
    page.until("document.getElementById('state')?.textContent === 'ready'")
        .await;
    page.until("parseFloat(document.getElementById('ratio').textContent) > 50")
        .await;
    let shown = "parseFloat(document.querySelector('#saved b').textContent.replace(' k', '000'))";
    let before = page.value(shown).await.as_f64().unwrap();
    page.until(&format!("{shown} > {before}")).await;
    page.until("document.querySelector('#routes tbody tr td').textContent.length > 0")
        .await;
    page.until("document.querySelector('#routes').textContent.includes('no-route')")
        .await;
    page.until("document.querySelectorAll('#chart canvas').length === 1")
        .await;

    // Since the page was opened fewer are counted, and still some.
    let requests = "parseFloat(document.querySelector('#routes \
        td:nth-child(2)').textContent.replace(' k', '000'))";
    let counted_since = |when: &str| {
        format!(
            "document.getElementById('span').value = '{when}'; \
                document.getElementById('span').dispatchEvent(new Event('change')); {requests}"
        )
    };
    page.until(&format!("{} > 0", counted_since("opened")))
        .await;
    let opened = page.value(&counted_since("opened")).await.as_f64().unwrap();
    let start = page.value(&counted_since("start")).await.as_f64().unwrap();
    assert!(opened < start, "{opened} of {start}");

    let explain = "document.getElementById('explain-url').value = 'http://api.example/1'; \
        document.querySelector('#explain button').click(); true";
    page.value(explain).await;
    page.until(
        "document.getElementById('explained').textContent.includes('would be a HIT (fresh)')",
    )
    .await;
    let purge = "document.getElementById('purge-what').value = 'group'; \
        document.getElementById('purge-value').value = 'g'; document.querySelector('#purge \
        button').click(); true";
    page.value(purge).await;
    page.until("document.getElementById('purged').textContent === 'would purge 20 stored here'")
        .await;
    page.until("document.getElementById('recent').textContent.includes('purge')")
        .await;

    // Nothing was asked of anybody else.
    let others = "performance.getEntriesByType('resource').filter(one => \
        !one.name.startsWith(location.origin)).length";
    assert_eq!(page.value(others).await, 0);
    // Everything that does something can be reached by the keyboard, and has a name.
    let nameless = "[...document.querySelectorAll('input, select, textarea, button')].filter(one \
        => one.tabIndex < 0 || !(one.labels?.length || one.getAttribute('aria-label') || \
        one.textContent.trim())).length";
    assert_eq!(page.value(nameless).await, 0);
    let folder = std::env::var_os("PAGE_SCREENSHOTS").map(std::path::PathBuf::from);
    for (width, is_dark) in [(400, false), (400, true), (1200, false), (1200, true)] {
        let size = serde_json::json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false});
        page.say("Emulation.setDeviceMetricsOverride", size).await;
        // The chart is drawn anew.
        page.until("document.documentElement.scrollWidth === document.documentElement.clientWidth")
            .await;
        // Nothing of the table has to be pushed sideways to be seen.
        page.until(
            "document.querySelector('.scroll').scrollWidth <= \
            document.querySelector('.scroll').clientWidth",
        )
        .await;
        if let Some(folder) = &folder {
            let name = format!("{width}-{}.png", if is_dark { "dark" } else { "light" });
            page.screenshot(width, is_dark, &folder.join(name)).await;
        }
    }
    reading.store(false, Ordering::Relaxed);
    reader.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_with_a_token_shows_nothing_before_it_is_given() {
    let fixture = Fixture::start("[admin]\ntoken = \"s3cret\"\n", |seen| numbered(seen, &[])).await;
    let admin = fixture.sidecar().admin_address;
    assert_eq!(Client::admin(admin, "/status").await.status, 401);
    let document = Client::admin(admin, "/").await;
    assert_eq!(document.status, 200);
    assert!(
        document
            .header("content-security-policy")
            .unwrap()
            .contains("default-src 'none'")
    );
    let mut page = Browser::open(&format!("http://{admin}/")).await;
    page.until("document.getElementById('login')?.hidden === false")
        .await;
    page.value(
        "document.getElementById('token').value = 's3cret'; document.querySelector('#login \
        button').click(); true",
    )
    .await;
    page.until("document.getElementById('state').textContent === 'ready'")
        .await;
    page.until("document.getElementById('login').hidden").await;
}
