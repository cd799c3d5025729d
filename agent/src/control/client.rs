//! The other end of the socket: a request in, the agent's answer out, or why there is none.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::socket::SOCKET;
use super::{Done, Request};
use crate::status::Status;

/// How long an agent may take: it may be saving large buffers.
const PATIENCE: Duration = Duration::from_secs(60);
/// The most bytes of an answer.
const ANSWER_BYTES: usize = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error(
        "no agent listens at {path:?}: start one with `systemctl start lkst` or `lkst agent`, or say with `--run-dir` where it is"
    )]
    Nobody {
        /// Where.
        path: PathBuf,
    },
    /// Somebody does, and we may not ask.
    #[error("{path:?} is not for you: ask as root, or as a member of the agent's `socket_group`")]
    Denied {
        /// Where.
        path: PathBuf,
    },
    /// The agent will not do it.
    #[error("{0}")]
    Refused(String),
    /// Anything else.
    #[error("the agent at {path:?} did not answer: {error}")]
    Failed {
        /// Where.
        path: PathBuf,
        /// Why.
        error: String,
    },
}

#[derive(Deserialize)]
struct Refused {
    error: Said,
}

#[derive(Deserialize)]
struct Said {
    message: String,
}

#[derive(Deserialize)]
struct Ordered {
    message: String,
    traces: Vec<PathBuf>,
}

/// Asks the agent of a folder.
///
/// # Errors
/// See [`AskError`].
pub fn ask(run_dir: &Path, request: &Request) -> Result<Done, AskError> {
    let path = run_dir.join(SOCKET);
    let failed = |error: String| AskError::Failed {
        path: path.clone(),
        error,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(error.to_string()))?;
    runtime.block_on(async {
        match timeout(PATIENCE, converse(&path, request)).await {
            Ok(answer) => answer,
            Err(_) => Err(failed(format!("it took longer than {PATIENCE:?}"))),
        }
    })
}

async fn converse(path: &Path, request: &Request) -> Result<Done, AskError> {
    let failed = |error: String| AskError::Failed {
        path: path.to_owned(),
        error,
    };
    let stream = UnixStream::connect(path)
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => AskError::Nobody {
                path: path.to_owned(),
            },
            io::ErrorKind::PermissionDenied => AskError::Denied {
                path: path.to_owned(),
            },
            _ => failed(error.to_string()),
        })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed(error.to_string()))?;
    let talk = async {
        let answer = sender.send_request(http(request).map_err(failed)?).await;
        let answer = answer.map_err(|error| failed(error.to_string()))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| failed(error.to_string()))?.to_bytes();
        if !status.is_success() {
            return Err(match serde_json::from_slice::<Refused>(&body) {
                Ok(refused) => AskError::Refused(refused.error.message),
                Err(_) => failed(format!("it said {status}")),
            });
        }
        let strange = |error: serde_json::Error| {
            failed(format!(
                "this command does not understand it: {error}; are both of one version?"
            ))
        };
        match request {
            Request::Status => serde_json::from_slice::<Status>(&body)
                .map(|status| Done::Status(Box::new(status)))
                .map_err(strange),
            _ => serde_json::from_slice::<Ordered>(&body)
                .map(|Ordered { message, traces }| Done::Done { message, traces })
                .map_err(strange),
        }
    };
    let talk = std::pin::pin!(talk);
    let connection = std::pin::pin!(connection);
    match futures_either(talk, connection).await {
        Some(answer) => answer,
        None => Err(failed("it hung up".to_owned())),
    }
}

/// Drives the connection while we talk; `None` where it ended before.
async fn futures_either<T>(
    mut talk: std::pin::Pin<&mut impl Future<Output = T>>,
    mut connection: std::pin::Pin<&mut impl Future<Output = hyper::Result<()>>>,
) -> Option<T> {
    tokio::select! {
        biased;
        answer = &mut talk => Some(answer),
        ended = &mut connection => match ended {
            // The answer is there, and only waits to be taken.
            Ok(()) => Some(talk.await),
            Err(_) => None,
        },
    }
}

/// The request as it is sent.
fn http(request: &Request) -> Result<hyper::Request<Full<Bytes>>, String> {
    let (method, name, body) = match request {
        Request::Status => ("GET", "status".to_owned(), String::new()),
        Request::Reload => ("POST", "reload".to_owned(), String::new()),
        other => {
            // `{"NAME": {ARGUMENTS}}`
            let value = serde_json::to_value(other).map_err(|error| error.to_string())?;
            let (name, arguments) = value
                .as_object()
                .and_then(|object| object.iter().next())
                .ok_or("it has no arguments")?;
            ("POST", name.clone(), arguments.to_string())
        }
    };
    hyper::Request::builder()
        .method(method)
        .uri(format!("/v1/{name}"))
        .header("host", "lkst")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| error.to_string())
}
