//! HTTP over the socket: requests in, answers out. docs/control.md has the protocol.
//!
//! INVARIANT: whoever may connect cannot hold the agent up: connections, their length in time and in bytes are limited,
//! and each carries one request. Nor can they keep root out, for whom there are connections of its own.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::{Asked, Done, Refusal, RefusalKind, Request};
use crate::metrics;
use crate::status::Status;

/// Connections at once, of all but root.
const CONNECTIONS: usize = 32;
/// Connections of root at once, which nobody else can take.
const CONNECTIONS_OF_ROOT: usize = 8;
/// The most bytes of a request's body.
const BODY_BYTES: usize = 64 << 10;
/// How long a client has for its request.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a connection may last, the loop's work included.
const LONGEST: Duration = Duration::from_secs(60);

/// What is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serve {
    /// `/v1/…`
    Control,
    /// `/metrics`
    Metrics,
}

type Answer = Response<Full<Bytes>>;

/// A socket that is listened on.
#[derive(Debug)]
pub enum Listener {
    /// A Unix socket.
    Unix(UnixListener),
    /// A port of the loopback interface.
    Tcp(TcpListener),
}

/// Serves for as long as it is polled.
pub async fn serve(listener: Listener, what: Serve, ask: mpsc::Sender<Asked>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let slots_of_root = Arc::new(Semaphore::new(CONNECTIONS_OF_ROOT));
    loop {
        let accepted = match &listener {
            Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| Stream::Unix(stream)),
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| Stream::Tcp(stream)),
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                // Out of descriptors: it gets better, or it does not.
                tracing::debug!(%error, "a client could not connect");
                tokio::time::sleep(Duration::from_millis(500)).await;
                continue;
            }
        };
        // Who comes while all are taken is sent away at once: its client says so.
        let slots = match stream.is_root() {
            true => &slots_of_root,
            false => &slots,
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            continue;
        };
        let ask = ask.clone();
        tokio::spawn(async move {
            let served = match stream {
                Stream::Unix(stream) => timeout(LONGEST, connection(stream, what, ask)).await,
                Stream::Tcp(stream) => timeout(LONGEST, connection(stream, what, ask)).await,
            };
            drop(slot);
            if served.is_err() {
                tracing::debug!("a client took too long");
            }
        });
    }
}

enum Stream {
    Unix(tokio::net::UnixStream),
    Tcp(tokio::net::TcpStream),
}

impl Stream {
    /// Whether root has connected, as far as can be told.
    fn is_root(&self) -> bool {
        match self {
            Stream::Unix(stream) => stream.peer_cred().is_ok_and(|peer| peer.uid() == 0),
            Stream::Tcp(_) => false,
        }
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    what: Serve,
    ask: mpsc::Sender<Asked>,
) {
    let service = service_fn(move |request| {
        let ask = ask.clone();
        async move { Ok::<_, Infallible>(answer(request, what, &ask).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(16 << 10)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a client's connection ended early");
    }
}

async fn answer(request: hyper::Request<Incoming>, what: Serve, ask: &mpsc::Sender<Asked>) -> Answer {
    let path = request.uri().path().to_owned();
    match (what, request.method(), path.as_str()) {
        (Serve::Metrics, &Method::GET, "/metrics") => match asked(ask, Request::Status).await {
            Ok(Done::Status(status)) => scrape(&status),
            Ok(Done::Done { .. }) => gone(),
            Err(answer) => answer,
        },
        (Serve::Metrics, _, "/metrics") => wrong_method("GET"),
        (Serve::Metrics, _, _) => unknown("metrics are at `/metrics`"),
        (Serve::Control, method, path) => {
            let Some(name) = path.strip_prefix("/v1/") else {
                return unknown("this agent speaks version 1: paths begin with `/v1/`");
            };
            let name = name.to_owned();
            match (method, name.as_str()) {
                (&Method::GET, "status") => match asked(ask, Request::Status).await {
                    Ok(Done::Status(status)) => json_answer(StatusCode::OK, &status),
                    Ok(Done::Done { .. }) => gone(),
                    Err(answer) => answer,
                },
                (_, "status") => wrong_method("GET"),
                (&Method::POST, "reload" | "save" | "switch" | "enable" | "disable" | "reset") => {
                    order(&name, request.into_body(), ask).await
                }
                (_, "reload" | "save" | "switch" | "enable" | "disable" | "reset") => wrong_method("POST"),
                _ => {
                    unknown("there is `status`, `reload`, `save`, `switch`, `enable`, `disable` and `reset`")
                }
            }
        }
    }
}

/// An order with its arguments as a JSON object; an empty body is an empty object.
async fn order(name: &str, body: Incoming, ask: &mpsc::Sender<Asked>) -> Answer {
    let body = match timeout(PATIENCE, Limited::new(body, BODY_BYTES).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => {
            return refusal(
                StatusCode::PAYLOAD_TOO_LARGE,
                "bad-request",
                "the body could not be read, or is too large",
            );
        }
        Err(_) => {
            return refusal(
                StatusCode::REQUEST_TIMEOUT,
                "bad-request",
                "the body took too long",
            );
        }
    };
    let bad = |text: String| refusal(StatusCode::BAD_REQUEST, "bad-request", &text);
    let arguments: Value = match body.is_empty() {
        true => json!({}),
        false => match serde_json::from_slice(&body) {
            Ok(arguments) => arguments,
            Err(error) => return bad(format!("the body is not JSON: {error}")),
        },
    };
    let Value::Object(fields) = &arguments else {
        return bad("the body must be a JSON object".to_owned());
    };
    let request = match name {
        "reload" if fields.is_empty() => Ok(Request::Reload),
        "reload" => return bad("`reload` takes no arguments".to_owned()),
        name => serde_json::from_value::<Request>(json!({ name: arguments })),
    };
    let request = match request {
        Ok(request) => request,
        Err(error) => return bad(error.to_string()),
    };
    match asked(ask, request).await {
        Ok(Done::Done { message, traces }) => {
            json_answer(StatusCode::OK, &json!({ "message": message, "traces": traces }))
        }
        Ok(Done::Status(status)) => json_answer(StatusCode::OK, &status),
        Err(answer) => answer,
    }
}

async fn asked(ask: &mpsc::Sender<Asked>, request: Request) -> Result<Done, Answer> {
    let (answer, wait) = oneshot::channel();
    ask.send(Asked { request, answer }).await.map_err(|_| gone())?;
    match wait.await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(refused)) => Err(refused_answer(&refused)),
        Err(_) => Err(gone()),
    }
}

fn refused_answer(refused: &Refusal) -> Answer {
    let (status, kind) = match refused.kind {
        RefusalKind::NotFound => (StatusCode::NOT_FOUND, "not-found"),
        RefusalKind::Conflict => (StatusCode::CONFLICT, "conflict"),
        RefusalKind::Failed => (StatusCode::INTERNAL_SERVER_ERROR, "failed"),
    };
    refusal(status, kind, &refused.message)
}

fn gone() -> Answer {
    refusal(StatusCode::SERVICE_UNAVAILABLE, "failed", "the agent is ending")
}

fn unknown(message: &str) -> Answer {
    refusal(StatusCode::NOT_FOUND, "not-found", message)
}

fn wrong_method(allowed: &'static str) -> Answer {
    let mut answer = refusal(
        StatusCode::METHOD_NOT_ALLOWED,
        "bad-request",
        &format!("this path takes {allowed}"),
    );
    answer
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}

fn refusal(status: StatusCode, kind: &str, message: &str) -> Answer {
    json_answer(status, &json!({ "error": { "kind": kind, "message": message } }))
}

fn json_answer(status: StatusCode, body: &impl serde::Serialize) -> Answer {
    let text = serde_json::to_vec(body).unwrap_or_default();
    with_type(status, "application/json", text)
}

fn scrape(status: &Status) -> Answer {
    let text = metrics::render(status);
    with_type(StatusCode::OK, metrics::CONTENT_TYPE, text.into_bytes())
}

fn with_type(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}
