//! Bypass: to the origin and back, streamed both ways and never stored.

use std::sync::Arc;

use http::header::{CONNECTION, CONTENT_LENGTH, DATE, MAX_FORWARDS, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, request};

use crate::error::Failure;
use crate::guard::{Ruling, source_is_ill};
use crate::http::dates;
use crate::policy::Reason;
use crate::proxy::client_request::ClientRequest;
use crate::proxy::exchange::Exchange;
use crate::proxy::fetch::key_ruling::{Proof, probe_of, rule};
use crate::proxy::fetch::update_stored::update_by_head;
use crate::proxy::keyed_request::{KeyedRequest, LetIn};
use crate::proxy::parts::store::store_as_it_passes;
use crate::proxy::plan::{Plan, PlannedRoute};
use crate::proxy::purging::write::Write;
use crate::proxy::wire::conditions::CONDITIONS;
use crate::proxy::wire::hops::{self, Hops};
use crate::proxy::wire::response_head::clean_response;
use crate::proxy::wire::{Body, Conditions, Form, InterimListener, InterimQueue, forward, tunnel};
use crate::upstream::{OriginBody, UploadUnwanted, empty};

use super::handled::{Awaited, Delivered, Handled};
use super::note::Note;
use super::refusal::failure_on;

/// A request that nothing stored answers, and whose answer is not stored.
pub struct Bypassed {
    pub request: ClientRequest,
    pub route: Option<Arc<PlannedRoute>>,
    pub let_in: Option<LetIn>,
    pub note: Note,
}

/// Why there is no response of the origin's for a client.
struct NoResponse {
    failure: Failure,
    /// It is the origin's fault, and `Cache-Status` says so.
    detail: Option<Reason>,
}

impl NoResponse {
    fn answer(
        self,
        plan: &Plan,
        route: Option<&PlannedRoute>,
        method: &Method,
        note: Note,
    ) -> Delivered {
        let detail = self.detail.or(note.detail);
        let note = Note { detail, ..note };
        let response = failure_on(plan, route, method, &self.failure, note);
        Delivered { response, note }
    }
}

impl Bypassed {
    /// Sends it with what the client sends after its head.
    pub fn answer(
        self,
        plan: &Arc<Plan>,
        upload: Option<OriginBody>,
        interim: Option<&Arc<InterimQueue>>,
    ) -> Handled {
        let interim = InterimListener::open(interim, self.request.parts.version);
        let awaited = Awaited {
            plan: Arc::clone(plan),
            route: self.route.clone(),
            method: self.request.parts.method.clone(),
            started: self.request.started,
            observed: self.request.observed.clone(),
            interim: interim.clone(),
        };
        let upload = upload.unwrap_or_else(empty);
        awaited.handle(self.pass(Arc::clone(plan), upload, interim))
    }

    async fn pass(
        mut self,
        plan: Arc<Plan>,
        upload: OriginBody,
        interim: Option<InterimListener>,
    ) -> Delivered {
        let parts = &mut self.request.parts;
        match hops::left(parts) {
            Hops::Unlimited => {}
            Hops::Left(left) => drop(parts.headers.insert(MAX_FORWARDS, left.into())),
            Hops::None => return last_hop(&plan, parts, self.note),
        }
        let upgrade = forward::upgrade_of(parts).cloned();
        let route = self.route.as_deref();
        let interim = interim.as_ref();
        let conditions = Conditions::Pass;
        let request = self
            .request
            .to_origin(&plan, route, Form::Own, conditions, upload, interim);
        let request = match request {
            Ok(request) => request,
            Err(failure) => return self.no_response(&plan, failed(&plan, self.let_in, failure)),
        };
        let probe = probe_of(&plan, self.let_in, &request);
        let answer = match Write::of(&plan, &self.request, route) {
            Some(write) => write.carry_out(request).await,
            None => plan.state.origin.answer(request).await,
        };
        let mut response = match answer {
            Ok(response) => response,
            Err(failure) => return self.no_response(&plan, failed(&plan, self.let_in, failure)),
        };
        self.note.forward_status = Some(response.status());
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return self.switch(&plan, response, upgrade);
        }
        let is_last = response.extensions().get::<UploadUnwanted>().is_some();
        // What the client sent beside its key may be what was answered.
        let proof = Proof::ProvesNothing;
        match judged(&plan, self.let_in, proof, probe, &mut response).await {
            Ok(_) => {
                self.note.write(response.headers_mut());
                if is_last && self.request.parts.version <= Version::HTTP_11 {
                    // Nobody reads what the client still has to send (RFC 9112 §9.6).
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(CONNECTION, close);
                }
                Delivered {
                    response: response.map(Body::Origin),
                    note: self.note,
                }
            }
            Err(why) => self.no_response(&plan, why),
        }
    }

    /// The origin switches protocols, and so do we.
    fn switch(
        mut self,
        plan: &Plan,
        mut response: Response<OriginBody>,
        upgrade: Option<HeaderValue>,
    ) -> Delivered {
        let idle_limit = plan.config.limits.tunnel_timeout;
        match tunnel::switch(&mut self.request.parts, &mut response, upgrade, idle_limit) {
            Ok(response) => Delivered {
                response,
                note: self.note,
            },
            Err(failure) => {
                let detail = None;
                self.no_response(plan, NoResponse { failure, detail })
            }
        }
    }

    fn no_response(&self, plan: &Plan, why: NoResponse) -> Delivered {
        let method = &self.request.parts.method;
        why.answer(plan, self.route.as_deref(), method, self.note)
    }
}

/// Passes a keyed request on as it is: a HEAD, a condition or a range that is the origin's to
/// answer. What the answer says of stored responses is heard.
pub async fn pass_keyed(plan: &Plan, keyed: KeyedRequest, mut note: Note) -> Delivered {
    let let_in = keyed.let_in;
    let route = Some(&*keyed.route);
    let method = &keyed.request.parts.method;
    let request = match keyed.to_origin(plan, Conditions::Pass) {
        Ok(request) => request,
        Err(failure) => return failed(plan, let_in, failure).answer(plan, route, method, note),
    };
    let mut exchange = Exchange::begin(plan);
    let probe = probe_of(plan, let_in, &request);
    let mut response = match plan.state.origin.answer(request).await {
        Ok(response) => response,
        Err(failure) => return failed(plan, let_in, failure).answer(plan, route, method, note),
    };
    note.forward_status = Some(response.status());
    let proof = proof_of(&keyed.request.parts);
    match judged(plan, let_in, proof, probe, &mut response).await {
        Ok(()) => {}
        Err(why) => return why.answer(plan, route, method, note),
    }
    exchange.received = plan.state.clock.now();
    if !keyed.verifies() {
        update_by_head(&plan.state, &keyed, exchange, &response);
        response = store_as_it_passes(plan, &keyed, exchange, response);
    }
    note.write(response.headers_mut());
    let response = response.map(Body::Origin);
    Delivered { response, note }
}

/// Cleans a response and hears what it says of its caller's key; an error where it is not for the
/// client.
async fn judged(
    plan: &Plan,
    let_in: Option<LetIn>,
    proof: Proof,
    probe: Option<Request<()>>,
    response: &mut Response<OriginBody>,
) -> Result<(), NoResponse> {
    let state = &plan.state;
    clean_response(response, state.clock.now(), &plan.forwarding).map_err(|failure| {
        state.metrics.upstream_failed(failure.kind);
        NoResponse {
            failure,
            detail: Some(Reason::OriginFailed),
        }
    })?;
    plan.forwarding.name_no_upstream(response.headers_mut());
    let status = response.status();
    let ruling = rule(plan, let_in, status, proof, probe).await;
    if ruling == Ruling::Outage {
        return Err(NoResponse {
            failure: source_is_ill(),
            detail: None,
        });
    }
    Ok(())
}

/// The origin could not be asked, or gave no answer.
fn failed(plan: &Plan, let_in: Option<LetIn>, failure: Failure) -> NoResponse {
    let is_origins = failure.kind.is_origins();
    if let (Some(guard), Some(let_in), true) = (&plan.guard, let_in, is_origins) {
        guard.failed(&let_in.caller);
    }
    let verifies = let_in.is_some_and(|let_in| let_in.verifies);
    NoResponse {
        failure: if verifies && is_origins {
            source_is_ill()
        } else {
            failure
        },
        detail: Some(Reason::OriginFailed),
    }
}

/// The answer to an OPTIONS or TRACE that goes no further (RFC 9110 §7.6.2).
fn last_hop(plan: &Plan, parts: &request::Parts, note: Note) -> Delivered {
    let mut response = hops::answer(parts).map(Body::Whole);
    let date = dates::format(plan.state.clock.now());
    response.headers_mut().insert(DATE, date);
    note.write_result(response.headers_mut());
    Delivered { response, note }
}

/// A GET without conditions, of the whole: a 2xx to it proves a key good.
fn proof_of(parts: &request::Parts) -> Proof {
    let headers = &parts.headers;
    let others = [UPGRADE, TRANSFER_ENCODING, CONTENT_LENGTH];
    let mut names = CONDITIONS.iter().chain(&others);
    let is_plain = parts.method == Method::GET && !names.any(|name| headers.contains_key(name));
    if is_plain {
        Proof::Proves
    } else {
        Proof::ProvesNothing
    }
}
