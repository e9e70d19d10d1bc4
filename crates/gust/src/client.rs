//! A small client of the server's HTTP API, for the commands and the benches.

use std::time::Duration;

use bytes::Bytes;
use gust_control::clock;
use gust_gateway::{
    SERVICE,
    sigv4::{self, Scope, Signable},
};
use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Method, Response, StatusCode, Uri,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    header::{HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::{net::TcpStream, time::timeout};

use crate::{cli::ServerArgs, exit};

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Largest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Why a request got no answer, or a bad one.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The endpoint is no address.
    #[error("the endpoint {0:?} is not of the form http://HOST:PORT")]
    Endpoint(String),
    /// No server answers.
    #[error("no server answers at {endpoint}")]
    NoServer {
        /// Its address.
        endpoint: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("the connection to {endpoint} broke")]
    Broken {
        /// Its address.
        endpoint: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server refused.
    #[error("{message} ({code})")]
    Refused {
        /// AWS's name of the error.
        code: String,
        /// Status.
        status: StatusCode,
        /// For a person.
        message: String,
    },
    /// The answer makes no sense.
    #[error("the server's answer makes no sense: {0}")]
    Nonsense(String),
}

impl ClientError {
    /// The exit code of a command that ends with this.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoServer { .. } => exit::NO_SERVER,
            Self::Refused { status, .. } if *status == StatusCode::NOT_FOUND => exit::NOT_FOUND,
            Self::Endpoint(_) | Self::Broken { .. } | Self::Refused { .. } | Self::Nonsense(_) => {
                exit::FAILED
            }
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoServer { .. } => Some("start one with: gust up"),
            Self::Refused { code, .. } => match code.as_str() {
                "ResourceNotFoundException" => Some("gust ls shows the functions that there are"),
                "MissingAuthenticationTokenException"
                | "UnrecognizedClientException"
                | "InvalidSignatureException" => {
                    Some("set GUST_ACCESS_KEY_ID and GUST_SECRET_ACCESS_KEY to a key of the server")
                }
                "TooManyRequestsException" => Some("try again, or raise the function's reserved concurrency"),
                _ => None,
            },
            Self::Endpoint(_) | Self::Broken { .. } | Self::Nonsense(_) => None,
        }
    }

    /// The server says that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == StatusCode::NOT_FOUND)
    }
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Result<Value, ClientError> {
        serde_json::from_slice(&self.body).map_err(|error| ClientError::Nonsense(error.to_string()))
    }

    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// A server, and who calls it.
#[derive(Debug, Clone)]
pub struct Client {
    endpoint: String,
    authority: String,
    key: Option<(String, String)>,
    region: String,
}

/// An open connection.
#[derive(Debug)]
pub struct Connection {
    client: Client,
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    /// A client for the server that a command names.
    pub fn new(server: &ServerArgs) -> Result<Self, ClientError> {
        let endpoint = server.endpoint();
        let bad = || ClientError::Endpoint(endpoint.to_owned());
        let uri: Uri = endpoint.parse().map_err(|_| bad())?;
        let host = uri
            .host()
            .filter(|_| uri.scheme_str() == Some("http"))
            .ok_or_else(bad)?;
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            authority: format!("{host}:{}", uri.port_u16().unwrap_or(80)),
            key: server.access_key.clone().zip(server.secret_key.clone()),
            region: server.region.clone(),
        })
    }

    /// Opens a connection.
    pub async fn connect(&self) -> Result<Connection, ClientError> {
        let no_server = |source| ClientError::NoServer {
            endpoint: self.endpoint.clone(),
            source,
        };
        let stream = match timeout(CONNECT_TIMEOUT, TcpStream::connect(&self.authority)).await {
            Ok(connected) => connected.map_err(no_server)?,
            Err(_elapsed) => return Err(no_server(std::io::ErrorKind::TimedOut.into())),
        };
        stream.set_nodelay(true).map_err(no_server)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.broken(e))?;
        // Ends with the connection; a failure reaches whoever waits for an answer.
        tokio::spawn(connection);
        Ok(Connection {
            client: self.clone(),
            sender,
        })
    }

    /// Sends a request on a connection of its own; an answer that is an error becomes one here.
    pub async fn send(
        &self,
        method: Method,
        path_and_query: &str,
        headers: &[(&'static str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Answer, ClientError> {
        self.connect()
            .await?
            .send(method, path_and_query, headers, body.into())
            .await
    }

    /// `GET` with a JSON answer.
    pub async fn get(&self, path_and_query: &str) -> Result<Value, ClientError> {
        self.send(Method::GET, path_and_query, &[], Bytes::new())
            .await?
            .json()
    }

    /// A request with a JSON body and a JSON answer.
    pub async fn call(&self, method: Method, path: &str, body: &Value) -> Result<Value, ClientError> {
        let headers = [("content-type", "application/json")];
        self.send(method, path, &headers, body.to_string()).await?.json()
    }

    /// `GET` with an answer that comes in pieces.
    pub async fn stream(&self, path_and_query: &str) -> Result<Incoming, ClientError> {
        let mut connection = self.connect().await?;
        let response = connection
            .begin(Method::GET, path_and_query, &[], Bytes::new())
            .await?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        Err(refused(&connection.client.whole(response).await?))
    }

    async fn whole(&self, response: Response<Incoming>) -> Result<Answer, ClientError> {
        let (parts, body) = response.into_parts();
        let body = http_body_util::Limited::new(body, ANSWER_BYTES_MAX)
            .collect()
            .await;
        let body = body.map_err(|source| self.broken(source))?.to_bytes();
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            body,
        })
    }

    fn broken(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        ClientError::Broken {
            endpoint: self.endpoint.clone(),
            source: source.into(),
        }
    }

    fn sign(&self, method: &Method, path_and_query: &str, headers: &mut HeaderMap, body: &[u8]) {
        let Some((id, secret)) = &self.key else { return };
        let timestamp = sigv4::basic_timestamp(clock::unix_ms());
        let scope = Scope {
            date: timestamp[..8].to_owned(),
            region: self.region.clone(),
            service: SERVICE.to_owned(),
        };
        let value = |text: &str| HeaderValue::from_str(text).ok();
        headers.extend(value(&timestamp).map(|value| (HeaderName::from_static("x-amz-date"), value)));
        let (path, query) = path_and_query.split_once('?').unwrap_or((path_and_query, ""));
        let request = Signable {
            method,
            path,
            query,
            headers,
            body_sha256: Sha256::digest(body).into(),
        };
        let signed = ["host", "x-amz-date"].map(str::to_owned);
        let signature = sigv4::sign(&request, secret, &scope, &timestamp, &signed);
        let authorization = format!(
            "{} Credential={id}/{scope}, SignedHeaders={}, Signature={signature}",
            sigv4::ALGORITHM,
            signed.join(";")
        );
        headers.extend(value(&authorization).map(|value| (HeaderName::from_static("authorization"), value)));
    }
}

impl Connection {
    /// Whether the server has not closed it yet, as far as is known.
    pub fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Waits until a request can be sent; `false` when the server has closed it, or has said with its last answer that it does.
    pub async fn can_send(&mut self) -> bool {
        self.sender.ready().await.is_ok()
    }

    /// Sends a request and receives the whole answer; one that is an error becomes one here.
    pub async fn send(
        &mut self,
        method: Method,
        path_and_query: &str,
        headers: &[(&'static str, &str)],
        body: Bytes,
    ) -> Result<Answer, ClientError> {
        let response = self.begin(method, path_and_query, headers, body).await?;
        let answer = self.client.whole(response).await?;
        if answer.status.is_success() {
            Ok(answer)
        } else {
            Err(refused(&answer))
        }
    }

    async fn begin(
        &mut self,
        method: Method,
        path_and_query: &str,
        headers: &[(&'static str, &str)],
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let nonsense = |error: &dyn std::fmt::Display| ClientError::Nonsense(error.to_string());
        let mut map = HeaderMap::new();
        map.insert(
            "host",
            HeaderValue::from_str(&self.client.authority).map_err(|e| nonsense(&e))?,
        );
        for (name, value) in headers {
            map.insert(*name, HeaderValue::from_str(value).map_err(|e| nonsense(&e))?);
        }
        self.client.sign(&method, path_and_query, &mut map, &body);
        let mut request = hyper::Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = path_and_query.parse().map_err(|e| nonsense(&e))?;
        *request.headers_mut() = map;
        self.sender
            .ready()
            .await
            .map_err(|source| self.client.broken(source))?;
        self.sender
            .send_request(request)
            .await
            .map_err(|source| self.client.broken(source))
    }
}

fn refused(answer: &Answer) -> ClientError {
    let document: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let message = ["message", "Message"]
        .iter()
        .find_map(|name| document[name].as_str());
    ClientError::Refused {
        code: answer
            .header("x-amzn-errortype")
            .unwrap_or("no error type")
            .to_owned(),
        status: answer.status,
        message: message
            .unwrap_or("the server refused without a message")
            .to_owned(),
    }
}

/// A name as one segment of a path, or one value of a query.
pub fn segment(name: &str) -> String {
    sigv4::percent_encode(name)
}
