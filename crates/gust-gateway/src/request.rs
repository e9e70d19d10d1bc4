//! One request on its way through the gateway, and the answers that it can get.

use bytes::Bytes;
use gust_control::{
    Control,
    ids::{FunctionName, Place, Target},
};
use hyper::{HeaderMap, Response, StatusCode, header::HeaderValue};
use serde::de::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use crate::{body::Body, error::ApiError, names, operation::Captures, server::Gateway};

/// A request whose body has been received.
#[derive(Debug)]
pub struct Request<'a> {
    /// The gateway.
    pub gateway: &'a Gateway,
    /// Id of the request.
    pub id: Uuid,
    /// Headers.
    pub headers: &'a HeaderMap,
    /// Query, decoded.
    pub query: Vec<(String, String)>,
    /// The parts of the path that the operation names.
    pub captures: Captures,
    /// Body.
    pub body: Bytes,
}

/// What a handler answers.
pub type Answer = Result<Response<Body>, ApiError>;

impl Request<'_> {
    /// The control plane.
    pub fn control(&self) -> &Control {
        &self.gateway.control
    }

    /// Region and account.
    pub fn place(&self) -> &Place {
        &self.gateway.control.config().place
    }

    /// A parameter of the query.
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// A header, when it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The function of the path with the qualifier of name or query.
    ///
    /// # Errors
    /// When either is malformed.
    pub fn target(&self) -> Result<Target, ApiError> {
        names::target(self.place(), self.captures.get(0), self.query("Qualifier"))
    }

    /// The function of the path, which may have no qualifier.
    ///
    /// # Errors
    /// When it is malformed or has one.
    pub fn function(&self) -> Result<FunctionName, ApiError> {
        names::unqualified(self.place(), self.captures.get(0))
    }

    /// The body as JSON. No body is an empty object: SDKs send none when every member is optional.
    ///
    /// # Errors
    /// When it is not JSON, or of another shape.
    pub fn json<'b, T: Deserialize<'b>>(&'b self) -> Result<T, ApiError> {
        let text: &[u8] = if self.body.is_empty() { b"{}" } else { &self.body };
        serde_json::from_slice(text).map_err(|error| {
            if error.is_data() {
                ApiError::serialization(error.to_string())
            } else {
                ApiError::invalid_content(format!("Could not parse request body into json: {error}"))
            }
        })
    }

    /// A page of a list.
    ///
    /// # Errors
    /// When the page's size is out of range or the marker is none of ours.
    pub fn page(&self, items_max: u32) -> Result<Page, ApiError> {
        Page::parse(self.query("Marker"), self.query("MaxItems"), items_max)
    }
}

/// A JSON answer.
pub fn json(status: StatusCode, value: &Value) -> Answer {
    let mut response = Response::new(Body::full(value.to_string()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert("content-type", HeaderValue::from_static("application/json"));
    Ok(response)
}

/// `204 No Content`.
pub fn no_content() -> Answer {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

/// Which part of a list is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    after: Option<String>,
    items_max: usize,
}

/// Items of a page when the caller states no number.
const PAGE_ITEMS_DEFAULT: u32 = 50;

impl Page {
    fn parse(marker: Option<&str>, items: Option<&str>, items_max: u32) -> Result<Self, ApiError> {
        use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
        let after = marker.filter(|marker| !marker.is_empty()).map(|marker| {
            let text = URL_SAFE_NO_PAD
                .decode(marker)
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok());
            text.ok_or_else(|| {
                ApiError::invalid_parameter("Invalid Marker: it was not given by this operation")
            })
        });
        let items = match items {
            None => PAGE_ITEMS_DEFAULT.min(items_max),
            Some(text) => {
                let mut violations = crate::validate::Violations::default();
                let number = text
                    .parse::<i64>()
                    .map_err(|_| ApiError::serialization(format!("MaxItems is no number: {text}")))?;
                violations.range(Some(number), "maxItems", 1, 10_000);
                violations.check()?;
                crate::validate::number(Some(number))
                    .unwrap_or(items_max)
                    .min(items_max)
            }
        };
        Ok(Self {
            after: after.transpose()?,
            items_max: items as usize,
        })
    }

    /// Cuts the page out of a list that is sorted by key. Answers it with the marker of the next one.
    pub fn cut<T>(self, list: Vec<(String, T)>) -> (Vec<T>, Option<String>) {
        use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
        let start = match &self.after {
            Some(after) => list.partition_point(|(key, _)| key <= after),
            None => 0,
        };
        let more = list.len() > start + self.items_max;
        let page: Vec<(String, T)> = list.into_iter().skip(start).take(self.items_max).collect();
        let marker = page
            .last()
            .filter(|_| more)
            .map(|(key, _)| URL_SAFE_NO_PAD.encode(key));
        (page.into_iter().map(|(_, item)| item).collect(), marker)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Following the markers shows every item once, whatever the size of the pages.
        #[test]
        fn pages_show_everything_once(
            keys in proptest::collection::btree_set("[a-z]{1,4}", 0..40), items in 1u32..10
        ) {
            let list: Vec<(String, String)> = keys.iter().map(|key| (key.clone(), key.clone())).collect();
            let (mut seen, mut marker) = (Vec::new(), None::<String>);
            for _ in 0..=keys.len() {
                let page = Page::parse(marker.as_deref(), Some(&items.to_string()), 50).unwrap();
                let (page, next) = page.cut(list.clone());
                prop_assert!(page.len() <= items as usize);
                seen.extend(page);
                marker = next;
                if marker.is_none() {
                    break;
                }
            }
            prop_assert_eq!(marker, None);
            prop_assert_eq!(seen, keys.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn foreign_markers_and_sizes_are_refused() {
        for (marker, items) in [
            (Some("?"), None),
            (None, Some("0")),
            (None, Some("10001")),
            (None, Some("x")),
        ] {
            assert_eq!(
                Page::parse(marker, items, 50).unwrap_err().status,
                StatusCode::BAD_REQUEST
            );
        }
    }
}
