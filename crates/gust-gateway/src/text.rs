//! Escapes and digits as they stand in paths, queries and signatures.

use std::fmt::Write as _;

/// Names and values of a query, decoded. `+` stands for itself, as AWS has it.
pub(crate) fn parse_query(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter(|part| !part.is_empty())
        .map(|part| part.split_once('=').unwrap_or((part, "")))
        .map(|(name, value)| (percent_decode(name), percent_decode(value)))
        .collect()
}

/// Decodes `%XX`; what is no such escape stands for itself, and what is no UTF-8 is replaced.
pub(crate) fn percent_decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        let escape = match (first, tail) {
            (b'%', [high, low, ..]) => nibble(*high).zip(nibble(*low)),
            _ => None,
        };
        match escape {
            Some((high, low)) => {
                out.push(high << 4 | low);
                rest = &tail[2..];
            }
            None => out.push(*first),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Encodes all but the unreserved characters of RFC 3986.
pub(crate) fn encode(text: &[u8], out: &mut String) {
    for byte in text {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(*byte));
            }
            other => {
                let _infallible = write!(out, "%{other:02X}");
            }
        }
    }
}

fn nibble(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
            let _infallible = write!(text, "{byte:02x}");
            text
        })
}

pub(crate) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else {
        return None;
    };
    pairs
        .iter()
        .map(|[high, low]| Some(nibble(*high)? << 4 | nibble(*low)?))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_escape_stands_for_itself() {
        for (text, decoded) in [
            ("a%20b", "a b"),
            ("%zz%4", "%zz%4"),
            ("%C3%A9", "é"),
            ("a+b", "a+b"),
        ] {
            assert_eq!(percent_decode(text), decoded);
        }
        assert_eq!(
            parse_query("a=1&b&&c=%26="),
            [("a", "1"), ("b", ""), ("c", "&=")].map(|(k, v)| (k.into(), v.into()))
        );
        assert_eq!(from_hex("0aFF"), Some(vec![10, 255]));
        assert_eq!((from_hex("0"), from_hex("0g")), (None, None));
    }

    proptest! {
        #[test]
        fn escapes_come_back(text in "\\PC{0,64}") {
            let mut encoded = String::new();
            encode(text.as_bytes(), &mut encoded);
            prop_assert_eq!(percent_decode(&encoded), text);
        }
    }
}
