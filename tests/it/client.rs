//! A blocking HTTP/1.1 client that can also misbehave: tests see the bytes that a user's socket sees.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// What came back.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The body, whichever of the two formats it is in.
    pub(crate) fn json(&self) -> Value {
        if self.header("content-type") == Some("application/msgpack") {
            return rmp_serde::from_slice(&self.body).expect("msgpack");
        }
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {} {}", self.status, self.text()))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body of a reply that must be a success.
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// `error.code` of an error body.
    pub(crate) fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or("no error").to_owned()
    }

    /// `error.message` of an error body.
    pub(crate) fn message(&self) -> String {
        self.json()["error"]["message"].as_str().unwrap_or("no message").to_owned()
    }
}

/// Nothing in these tests takes this long; a hang fails instead of stopping the run.
const PATIENCE: Duration = Duration::from_secs(60);

/// One connection, kept alive between requests.
pub(crate) struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    pub(crate) fn open(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).expect("the server accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        stream.set_nodelay(true).expect("nodelay can be set");
        Self { reader: BufReader::new(stream) }
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).expect("the server reads");
    }

    /// The same towards a server that may hang up.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    /// Sends a request without waiting for its reply.
    pub(crate) fn start(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        self.send(&request(method, path, headers, body));
    }

    /// Sends a JSON body without waiting for the reply.
    pub(crate) fn start_post(&mut self, path: &str, body: &Value) {
        self.start("POST", path, &[JSON], body.to_string().as_bytes());
    }

    /// Waits for the reply of the oldest request that has none.
    pub(crate) fn reply(&mut self) -> Reply {
        self.try_reply().expect("the server replies")
    }

    /// The same; `None` when the server hung up instead.
    pub(crate) fn try_reply(&mut self) -> Option<Reply> {
        let mut line = String::new();
        self.reader.read_line(&mut line).ok().filter(|&read| read > 0)?;
        let status = line.split(' ').nth(1)?.parse().ok()?;
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            self.reader.read_line(&mut line).ok()?;
            match line.trim_end().split_once(": ") {
                Some((name, value)) => headers.push((name.to_owned(), value.to_owned())),
                None => break,
            }
        }
        let mut reply = Reply { status, headers, body: Vec::new() };
        if reply.header("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = self.chunk().filter(|chunk| !chunk.is_empty()) {
                reply.body.extend(chunk);
            }
            return Some(reply);
        }
        let length = reply.header("content-length").map_or(0, |value| value.parse().expect("a number"));
        reply.body = vec![0; length];
        self.reader.read_exact(&mut reply.body).ok()?;
        Some(reply)
    }

    /// The next part of a body that is sent in parts; the last is empty.
    fn chunk(&mut self) -> Option<Vec<u8>> {
        let mut line = String::new();
        self.reader.read_line(&mut line).ok()?;
        let length = usize::from_str_radix(line.trim_end(), 16).ok()?;
        let mut chunk = vec![0; length + 2];
        self.reader.read_exact(&mut chunk).ok()?;
        chunk.truncate(length);
        Some(chunk)
    }

    /// Reads until `text` has come, and all before it; fails when the server hangs up before that.
    pub(crate) fn read_until(&mut self, text: &str) -> String {
        let mut read = Vec::new();
        while !read.ends_with(text.as_bytes()) {
            let mut byte = [0];
            self.reader.read_exact(&mut byte).expect("the server goes on");
            read.extend(byte);
        }
        String::from_utf8_lossy(&read).into_owned()
    }

    /// Whether nothing arrives for `time`: for what must not happen.
    pub(crate) fn is_silent_for(&mut self, time: Duration) -> bool {
        let stream = self.reader.get_ref();
        stream.set_read_timeout(Some(time)).expect("a timeout can be set");
        let silent = stream
            .peek(&mut [0])
            .is_err_and(|error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        silent
    }

    /// Waits until bytes have arrived that nobody has read.
    pub(crate) fn await_bytes(&self) {
        self.reader.get_ref().peek(&mut [0]).expect("the server replies");
    }

    /// Waits until the server hangs up; true when it sent nothing before.
    pub(crate) fn closes_silently(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.reader.read_to_end(&mut rest) {
            Ok(_) => rest.is_empty(),
            Err(error) => error.kind() == ErrorKind::ConnectionReset && rest.is_empty(),
        }
    }

    /// Everything until the server hangs up.
    pub(crate) fn read_rest(&mut self) -> String {
        let mut rest = String::new();
        self.reader.read_to_string(&mut rest).expect("text");
        rest
    }

    /// Says that no more will be sent, and goes on listening.
    pub(crate) fn finish_sending(&self) {
        self.reader.get_ref().shutdown(Shutdown::Write).expect("the socket is open");
    }

    pub(crate) fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Reply {
        self.start(method, path, headers, body);
        self.reply()
    }

    pub(crate) fn post(&mut self, path: &str, body: &Value) -> Reply {
        self.request("POST", path, &[JSON], body.to_string().as_bytes())
    }
}

/// A whole request, as it goes over the wire.
pub(crate) fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    let mut request = head.into_bytes();
    request.extend_from_slice(body);
    request
}

/// `value` in msgpack.
pub(crate) fn msgpack(value: &Value) -> Vec<u8> {
    rmp_serde::to_vec(value).expect("values can be written")
}

pub(crate) const JSON: (&str, &str) = ("content-type", "application/json");
pub(crate) const MSGPACK: (&str, &str) = ("content-type", "application/msgpack");
