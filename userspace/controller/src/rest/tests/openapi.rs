//! The document and its page over HTTP.

use std::io::Read;

use flate2::read::GzDecoder;
use http::StatusCode;
use reqwest::{Method, header::CONTENT_TYPE};

use super::support::{Server, json_of};

#[tokio::test]
async fn the_document_is_read_without_a_session_under_both_bases() {
    let server = Server::start().await;
    for path in ["/zstack/v1/openapi.json", "/v1/openapi.json"] {
        let reply = server.bare(Method::GET, path).send().await.unwrap();
        assert_eq!(
            (reply.status(), &reply.headers()[CONTENT_TYPE]),
            (StatusCode::OK, &"application/json;charset=UTF-8".parse().unwrap())
        );
        assert_eq!(json_of(reply).await["openapi"], "3.1.0", "{path}");
    }
}

#[tokio::test]
async fn the_page_and_all_that_it_loads_come_from_here() {
    let server = Server::start().await;
    let page = server.bare(Method::GET, "/zstack/docs").send().await.unwrap();
    assert!(page.url().path().ends_with('/'), "files are named relative to the page: {}", page.url());
    assert!(page.headers()["content-security-policy"].to_str().unwrap().starts_with("default-src 'self'"));
    let zipped = page.bytes().await.unwrap();
    let mut page = String::new();
    GzDecoder::new(&*zipped).read_to_string(&mut page).unwrap();
    let named =
        |mark: &'static str| page.split(mark).skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned);
    let loaded: Vec<_> = named("src=\"").chain(named("href=\"")).collect();
    assert!(loaded.len() >= 4, "{page}");
    for file in loaded {
        assert!(!file.contains("//"), "{file} is elsewhere");
        let reply = server.bare(Method::GET, &format!("/zstack/docs/{file}")).send().await.unwrap();
        assert_eq!(reply.status(), StatusCode::OK, "{file}");
    }
    let set_up =
        server.bare(Method::GET, "/zstack/docs/swagger-initializer.js").send().await.unwrap().text().await.unwrap();
    assert!(
        set_up.contains("\"/zstack/v1/openapi.json\"") && set_up.contains("\"validatorUrl\": \"none\""),
        "{set_up}"
    );
    let missing = server.bare(Method::GET, "/zstack/docs/nothing.js").send().await.unwrap();
    assert_eq!(missing.status(), StatusCode::NOT_FOUND);
}
