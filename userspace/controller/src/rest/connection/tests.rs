//! Request targets are encoded, and nothing else is, however the bytes come in.

use std::{
    net::{IpAddr, Ipv4Addr},
    pin::pin,
    time::Duration,
};

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    Connection, IDLE_TIMEOUT,
    limit::{Limit, Permit},
    target::{Encoder, MAX_HEAD},
};

/// What comes out of `bytes` that come in pieces of these lengths, over and over.
fn passed(bytes: &[u8], pieces: &[usize]) -> Vec<u8> {
    let mut encoder = Encoder::default();
    let mut out = Vec::new();
    let mut rest = bytes;
    for length in pieces.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, others) = rest.split_at(rest.len().min(*length));
        encoder.feed(piece, &mut out);
        rest = others;
    }
    encoder.end(&mut out);
    out
}

fn text(bytes: &[u8]) -> String {
    passed(bytes, &[bytes.len().max(1)]).escape_ascii().to_string()
}

#[test]
fn a_target_is_encoded_and_its_head_and_body_are_not() {
    let request = b"POST /zones?q=a>=1&q=b<\"2\" HTTP/1.1\r\nX-Note: a>b\r\nContent-Length: 5\r\n\r\n<a>\"'";
    let encoded = b"POST /zones?q=a%3E=1&q=b%3C%222%22 HTTP/1.1\r\nX-Note: a>b\r\nContent-Length: 5\r\n\r\n<a>\"'";
    assert_eq!(text(request), encoded.escape_ascii().to_string());
}

#[test]
fn other_characters_stay_as_they_are() {
    let request = "GET /zones?q=name=é|a+b%20c'{}^`\\ HTTP/1.1\r\n\r\n";
    assert_eq!(text(request.as_bytes()), request.as_bytes().escape_ascii().to_string());
}

#[test]
fn what_is_no_http_1_passes_as_it_came() {
    for bytes in [
        &b"\x16\x03\x01<<>>\n\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM<>\r\n\r\n",
        b"GET /<\r\n\r\n",
        b"GET /< HTTP/1.1",
        b"GET /< HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        b"GET /< HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\nGET /< HTTP/1.1\r\n\r\n",
        b"GET /> HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /> HTTP/1.1\r\nUpgrade: h2c\r\n\r\n",
    ] {
        assert_eq!(text(bytes), bytes.escape_ascii().to_string());
    }
}

#[test]
fn a_head_without_end_is_not_held_for_ever() {
    let mut encoder = Encoder::default();
    let mut out = Vec::new();
    let line = [b"GET /< HTTP/1.1\r\nX: ".as_slice(), &[b'x'; MAX_HEAD]].concat();
    encoder.feed(&line, &mut out);
    assert_eq!(out, line);
    assert!(encoder.is_passive());
    encoder.feed(b"\r\n\r\nGET /< HTTP/1.1\r\n\r\n", &mut out);
    assert!(out.ends_with(b"GET /< HTTP/1.1\r\n\r\n"));
}

/// A request in pieces that are put together, and its target as it must come out.
fn request() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let body = prop::collection::vec(prop::sample::select(b"<>\"a\r\n G/".as_slice()), 0..40);
    let framed = prop_oneof![
        Just("\r\n".as_bytes().to_vec()),
        body.clone()
            .prop_map(|body| { [format!("content-length: {}\r\n\r\n", body.len()).into_bytes(), body].concat() }),
        (prop::collection::vec(body, 0..4), any::<bool>()).prop_map(|(chunks, trailer)| {
            let mut bytes = b"Transfer-Encoding: chunked\r\n\r\n".to_vec();
            for chunk in chunks.iter().filter(|chunk| !chunk.is_empty()) {
                bytes.extend(format!("{:x};a=\"<\"\r\n", chunk.len()).into_bytes());
                bytes.extend(chunk);
                bytes.extend(b"\r\n");
            }
            bytes.extend(b"0\r\n");
            bytes.extend(if trailer { b"X-Sum: <>\r\n\r\n".as_slice() } else { b"\r\n" });
            bytes
        }),
    ];
    ("[\r\n]{0,2}", "GET|POST|PUT", "/[a-z<>\"é]{0,9}", framed).prop_map(|(empty, method, target, rest)| {
        let empty = empty.replace('\r', "\r\n");
        let encoded = target.replace('<', "%3C").replace('>', "%3E").replace('"', "%22");
        let whole = |target: &str| {
            let line = format!("{empty}{method} {target} HTTP/1.1\r\nHost: <a>\r\n");
            [line.into_bytes(), rest.clone()].concat()
        };
        (whole(&target), whole(&encoded))
    })
}

proptest! {
    #[test]
    fn requests_that_follow_each_other_are_encoded_each_however_they_are_split(
        requests in prop::collection::vec(request(), 1..6),
        pieces in prop::collection::vec(1_usize..60, 1..6),
    ) {
        let (sent, expected): (Vec<_>, Vec<_>) = requests.into_iter().unzip();
        prop_assert_eq!(
            passed(&sent.concat(), &pieces).escape_ascii().to_string(),
            expected.concat().escape_ascii().to_string()
        );
    }

    #[test]
    fn any_bytes_pass_whole_but_for_the_encoded_characters(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        pieces in prop::collection::vec(1_usize..60, 1..6),
    ) {
        let decoded = |bytes: &[u8]| percent_encoding::percent_decode(bytes).collect::<Vec<_>>();
        prop_assert_eq!(decoded(&passed(&bytes, &pieces)), decoded(&bytes));
    }
}

#[tokio::test]
async fn a_reader_gets_everything_in_pieces_of_any_length_and_the_end() {
    let (mut client, server) = tokio::io::duplex(7);
    let sent = b"GET /a?b>c HTTP/1.1\r\nContent-Length: 3\r\n\r\na>bGET /<".as_slice();
    let writer = tokio::spawn(async move { client.write_all(sent).await });
    let mut server = Connection::new(server, IDLE_TIMEOUT, permit());
    let mut read = Vec::new();
    let mut piece = [0; 3];
    loop {
        let count = server.read(&mut piece).await.unwrap();
        if count == 0 {
            break;
        }
        read.extend(&piece[..count]);
    }
    writer.await.unwrap().unwrap();
    assert_eq!(read.escape_ascii().to_string(), r"GET /a?b%3Ec HTTP/1.1\r\nContent-Length: 3\r\n\r\na>bGET /<");
}

fn permit() -> Permit {
    Limit::new(2).admit(Ipv4Addr::LOCALHOST.into()).unwrap()
}

#[tokio::test]
async fn a_connection_without_a_whole_head_ends_and_one_that_waits_for_its_answer_does_not() {
    for sent in ["", "\r\n\r\n", "GET / HTTP/1.1\r\nHost: a"] {
        let (mut client, server) = tokio::io::duplex(1 << 10);
        client.write_all(sent.as_bytes()).await.unwrap();
        let mut server = Connection::new(server, Duration::from_millis(50), permit());
        let error = server.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{sent:?}");
    }
    let (mut client, server) = tokio::io::duplex(1 << 10);
    let mut server = Connection::new(server, Duration::ZERO, permit());
    let head = b"GET / HTTP/1.1\r\n\r\n";
    client.write_all(head).await.unwrap();
    server.read_exact(&mut vec![0; head.len()]).await.unwrap();
    let mut byte = [0];
    assert!(futures::poll!(pin!(server.read(&mut byte))).is_pending());
    server.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    assert!(server.read(&mut byte).await.is_err(), "another request must come in time");
}

#[test]
fn connections_are_bounded_and_no_address_has_them_all() {
    let limit = Limit::new(10);
    let address = |host: u32| IpAddr::from(Ipv4Addr::from_bits(host));
    let mut first: Vec<_> = std::iter::from_fn(|| limit.admit(address(1))).collect();
    let second: Vec<_> = std::iter::from_fn(|| limit.admit(address(2))).collect();
    assert_eq!((first.len(), second.len()), (5, 5));
    assert!(limit.admit(address(3)).is_none());
    first.pop();
    assert!(limit.admit(address(3)).is_some());
    drop((first, second));
    assert!(limit.open.lock().unwrap().is_empty());
}
