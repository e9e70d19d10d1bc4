//! How a record is written: one byte for its kind, one for its version, then postcard.
//!
//! The prefix is checked before anything is decoded. An old version is handed to the record's own
//! [`Record::upgrade`]; a newer one is refused, so that an older program never rewrites what it does not understand.

use serde::{Serialize, de::DeserializeOwned};

/// A kind of record. `KIND` and `VERSION` are part of the format on disk: never use a number twice.
pub trait Record: Serialize + DeserializeOwned {
    /// Table that holds the records of this kind.
    const TABLE: &'static str;
    /// Number of the kind.
    const KIND: u8;
    /// Version of the encoding that is written.
    const VERSION: u8;

    /// Decodes the body of an older version. The default knows none.
    fn upgrade(version: u8, _body: &[u8]) -> Result<Self, RecordError> {
        Err(RecordError::UnknownVersion {
            kind: Self::KIND,
            version,
        })
    }
}

/// What is wrong with stored bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Shorter than the prefix.
    #[error("the record is shorter than its prefix")]
    Short,
    /// Another kind of record.
    #[error("the record is of kind {found}, expected {expected}")]
    WrongKind {
        /// Kind that was found.
        found: u8,
        /// Kind that was expected.
        expected: u8,
    },
    /// A version that this program does not know.
    #[error("the record of kind {kind} has version {version}, which this program does not know")]
    UnknownVersion {
        /// The record's kind.
        kind: u8,
        /// The record's version.
        version: u8,
    },
    /// The body does not decode.
    #[error("the record's body is damaged: {0}")]
    Body(postcard::Error),
}

/// Encodes a record with its prefix.
pub fn encode<R: Record>(record: &R) -> Vec<u8> {
    let prefix = vec![R::KIND, R::VERSION];
    postcard::to_extend(record, prefix).expect("records hold only what postcard can encode")
}

/// Decodes a record, checking its prefix first.
///
/// # Errors
/// [`RecordError`] says what is wrong with the bytes.
pub fn decode<R: Record>(bytes: &[u8]) -> Result<R, RecordError> {
    let [kind, version, body @ ..] = bytes else {
        return Err(RecordError::Short);
    };
    if *kind != R::KIND {
        return Err(RecordError::WrongKind {
            found: *kind,
            expected: R::KIND,
        });
    }
    if *version != R::VERSION {
        return R::upgrade(*version, body);
    }
    postcard::from_bytes(body).map_err(RecordError::Body)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sample {
        name: String,
        count: u64,
    }

    impl Record for Sample {
        const TABLE: &'static str = "sample";
        const KIND: u8 = 200;
        const VERSION: u8 = 2;

        fn upgrade(version: u8, body: &[u8]) -> Result<Self, RecordError> {
            if version != 1 {
                return Err(RecordError::UnknownVersion {
                    kind: Self::KIND,
                    version,
                });
            }
            let name = postcard::from_bytes(body).map_err(RecordError::Body)?;
            Ok(Self { name, count: 0 })
        }
    }

    #[test]
    fn the_encoding_is_pinned() {
        let bytes = encode(&Sample {
            name: "gust".to_owned(),
            count: 300,
        });
        assert_eq!(bytes, [200, 2, 4, b'g', b'u', b's', b't', 0xac, 0x02]);
    }

    #[test]
    fn an_old_version_is_upgraded_and_a_newer_one_refused() {
        let old = [200, 1, 4, b'g', b'u', b's', b't'];
        assert_eq!(
            decode::<Sample>(&old).unwrap(),
            Sample {
                name: "gust".to_owned(),
                count: 0
            }
        );
        let new = [200, 3, 4, b'g', b'u', b's', b't', 1];
        assert_eq!(
            decode::<Sample>(&new),
            Err(RecordError::UnknownVersion {
                kind: 200,
                version: 3
            })
        );
        assert_eq!(
            decode::<Sample>(&[201, 2]),
            Err(RecordError::WrongKind {
                found: 201,
                expected: 200
            })
        );
        assert_eq!(decode::<Sample>(&[200]), Err(RecordError::Short));
    }

    proptest! {
        #[test]
        fn records_come_back_whole(name in ".{0,64}", count: u64) {
            let record = Sample { name, count };
            prop_assert_eq!(decode::<Sample>(&encode(&record)).unwrap(), record);
        }

        #[test]
        fn damaged_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            drop(decode::<Sample>(&bytes));
        }
    }
}
