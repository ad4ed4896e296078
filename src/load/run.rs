//! The engine: virtual users or arrivals on one thread, each request measured to its last byte.
//!
//! In the open model latency counts from the moment at which a request was due, whatever kept it
//! from being sent (coordinated omission is in the figures, not left out of them). In the closed
//! model it counts from the moment of sending: a target that slows down is asked less, and the
//! report says so. How late the generator itself was is measured beside it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use http::Method;
use tokio::task::LocalSet;
use tokio::time::{Instant, interval, sleep_until, timeout};

use super::client::{Connection, Question, Target};
use super::plan::{Endpoint, Model, Scenario};
use super::record::{Cause, Record, Sample, Sums};
use super::template::fill;

/// How often the number of users follows the plan.
const FOLLOWS: Duration = Duration::from_millis(100);

/// Requests of an open model that may be under way; one more is not sent, and counted as that.
const MOST_UNDER_WAY: usize = 20_000;

/// How coarse a timer can be.
const COARSE: Duration = Duration::from_millis(2);

/// How long requests under way are waited for at the end.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// Where a run stands, once a second.
#[derive(Clone, Debug)]
pub struct Progress {
    pub elapsed: Duration,
    pub of: Duration,
    /// From 1.
    pub stage: usize,
    pub stages: usize,
    /// Virtual users, or the wanted rate.
    pub users: f64,
    /// Requests of the last second.
    pub last: Sums,
    pub requests: u64,
    pub errors: u64,
}

/// What all users share.
struct Run {
    target: Rc<Target>,
    endpoints: Vec<Endpoint>,
    /// Sums of weights up to each endpoint.
    weights: Vec<u32>,
    record: RefCell<Record>,
    started: Instant,
    /// Of requests.
    number: Cell<u64>,
    /// Users with a number from here on stop.
    wanted: Cell<usize>,
    under_way: Cell<usize>,
    /// Connections of the open model that nobody uses.
    idle: RefCell<Vec<Connection>>,
}

/// Carries out a scenario; ends before its time when `stop` is ready. `progress` is called once a
/// second.
pub async fn run(
    target: Rc<Target>,
    scenario: &Scenario,
    seed: u64,
    stop: impl Future<Output = ()>,
    mut progress: impl FnMut(&Progress),
) -> Record {
    let mut sum = 0;
    let weigh = |endpoint: &Endpoint| {
        sum += endpoint.weight;
        sum
    };
    let run = Rc::new(Run {
        target,
        weights: scenario.endpoints.iter().map(weigh).collect(),
        endpoints: scenario.endpoints.clone(),
        record: RefCell::new(Record::new(
            scenario.endpoints.len(),
            Duration::from_secs(1),
        )),
        started: Instant::now(),
        number: Cell::new(0),
        wanted: Cell::new(0),
        under_way: Cell::new(0),
        idle: RefCell::default(),
    });
    let local = LocalSet::new();
    let driving = local.run_until(async {
        let work = async {
            match &scenario.model {
                Model::Closed { think } => closed(&run, scenario, *think, seed).await,
                Model::Open => open(&run, scenario, seed).await,
            }
        };
        let telling = async {
            let mut due = interval(Duration::from_secs(1));
            due.tick().await;
            loop {
                due.tick().await;
                progress(&run.progress(scenario));
            }
        };
        let interrupted = tokio::select! {
            () = work => false,
            () = stop => true,
            () = telling => false,
        };
        run.wanted.set(0);
        run.record.borrow_mut().interrupted = interrupted;
        run.record.borrow_mut().elapsed = run.started.elapsed();
        let answered = async {
            while run.under_way.get() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if !interrupted {
            let _ = timeout(LAST_ANSWERS, answered).await;
        }
    });
    driving.await;
    run.record.replace(Record::new(0, Duration::from_secs(1)))
}

/// As many users as the plan says, each with a connection of its own.
async fn closed(run: &Rc<Run>, scenario: &Scenario, think: (Duration, Duration), seed: u64) {
    let mut due = interval(FOLLOWS);
    let mut users = Vec::new();
    loop {
        due.tick().await;
        let elapsed = run.started.elapsed();
        let Some((wanted, _)) = scenario.at(elapsed) else {
            return;
        };
        let wanted = wanted.round() as usize;
        run.wanted.set(wanted);
        run.record.borrow_mut().at(elapsed).users = wanted as f64;
        while users.len() < wanted {
            users.push(None);
        }
        for (number, user) in users.iter_mut().enumerate().take(wanted) {
            let is_gone = user
                .as_ref()
                .is_none_or(tokio::task::JoinHandle::is_finished);
            if is_gone {
                let random = Rng::with_seed(seed ^ (number as u64 + 1).wrapping_mul(0x9e37));
                let life = Rc::clone(run).user(number, think, random);
                *user = Some(tokio::task::spawn_local(life));
            }
        }
    }
}

/// As many requests a second as the plan says, whatever becomes of them.
async fn open(run: &Rc<Run>, scenario: &Scenario, seed: u64) {
    let mut random = Rng::with_seed(seed);
    let mut due = run.started;
    loop {
        let elapsed = due - run.started;
        let Some((rate, _)) = scenario.at(elapsed) else {
            return;
        };
        if rate < 0.1 {
            due += FOLLOWS;
            continue;
        }
        run.record.borrow_mut().at(elapsed).users = rate;
        // Timers are a millisecond coarse: the last of it is waited for by looking at the clock.
        if due > Instant::now() + COARSE {
            sleep_until(due - COARSE).await;
        }
        while due > Instant::now() {
            tokio::task::yield_now().await;
        }
        run.lagged(due);
        let one = Rc::clone(run).arrival(due, Rng::with_seed(random.u64(..)));
        tokio::task::spawn_local(one);
        due += Duration::from_secs_f64(1.0 / rate);
    }
}

impl Run {
    /// A user: asks, waits for the answer, thinks, and asks again.
    async fn user(self: Rc<Self>, number: usize, think: (Duration, Duration), mut random: Rng) {
        let mut connection = None;
        while number < self.wanted.get() {
            let begun = Instant::now();
            self.measured(&mut connection, begun, &mut random).await;
            let (least, most) = (think.0.as_micros() as u64, think.1.as_micros() as u64);
            let thinks = Duration::from_micros(random.u64(least..=most));
            if thinks.is_zero() {
                // Others have their turn even where the target answers at once.
                tokio::task::yield_now().await;
                continue;
            }
            let due = Instant::now() + thinks;
            sleep_until(due).await;
            self.lagged(due);
        }
    }

    /// One request of the open model, over a connection that is idle or a new one.
    async fn arrival(self: Rc<Self>, due: Instant, mut random: Rng) {
        if self.under_way.get() >= MOST_UNDER_WAY {
            let endpoint = self.pick(&mut random);
            self.add(endpoint, due, Err(Cause::Unsent));
            return;
        }
        let mut connection = self.idle.borrow_mut().pop();
        self.measured(&mut connection, due, &mut random).await;
        self.idle.borrow_mut().extend(connection);
    }

    async fn measured(&self, connection: &mut Option<Connection>, due: Instant, random: &mut Rng) {
        let endpoint = self.pick(random);
        let number = self.number.replace(self.number.get() + 1);
        let question = question(&self.endpoints[endpoint], number, random);
        self.under_way.set(self.under_way.get() + 1);
        let outcome = self.target.ask(connection, question).await;
        self.under_way.set(self.under_way.get() - 1);
        self.add(endpoint, due, outcome);
        if outcome.is_err() {
            // A target that refuses connections is not asked as fast as it can refuse.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn add(&self, endpoint: usize, due: Instant, outcome: Result<super::record::Answered, Cause>) {
        let sample = Sample {
            endpoint,
            is_get: self.endpoints[endpoint].method == Method::GET,
            latency: due.elapsed(),
            outcome,
        };
        let elapsed = self.started.elapsed();
        self.record.borrow_mut().add(&sample, elapsed);
    }

    fn lagged(&self, due: Instant) {
        self.record.borrow_mut().lag.add(due.elapsed());
    }

    fn pick(&self, random: &mut Rng) -> usize {
        let all = u64::from(self.weights.last().copied().unwrap_or(1));
        let picked = random.u64(..) % all.max(1);
        self.weights
            .iter()
            .position(|upto| picked < u64::from(*upto))
            .unwrap_or(0)
    }

    fn progress(&self, scenario: &Scenario) -> Progress {
        let elapsed = self.started.elapsed();
        let (users, stage) = scenario.at(elapsed).unwrap_or((0.0, scenario.stages.len()));
        let record = self.record.borrow();
        let before = elapsed.as_secs().saturating_sub(1) as usize;
        let last = record.over_time.get(before);
        let sum = |of: fn(&Sums) -> u64| record.by_endpoint.iter().map(of).sum();
        Progress {
            elapsed,
            of: scenario.lasts(),
            stage,
            stages: scenario.stages.len(),
            users,
            last: last.map(|step| step.sums.clone()).unwrap_or_default(),
            requests: sum(|sums| sums.requests),
            errors: sum(|sums| sums.errors),
        }
    }
}

/// The request of this number to an endpoint.
pub fn question(endpoint: &Endpoint, number: u64, random: &mut Rng) -> Question {
    let body = endpoint.body.as_deref();
    Question {
        method: endpoint.method.clone(),
        path: fill(&endpoint.path, number, random).into_owned(),
        headers: endpoint.headers.clone(),
        body: body.map(|body| Bytes::from(fill(body, number, random).into_owned())),
        number,
    }
}
