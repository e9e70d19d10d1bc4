//! Several nodes: the transport between the control plane and them, who may be a member, and how files travel.
//!
//! ```text
//!  control plane  <── one link, made by it ───   node
//!       │ files                                   │ files
//!       └──────────── chunks, by their names ─────┴──────────── other nodes
//! ```
//!
//! [`link`] moves messages ([`message`]) over TLS, [`trust`] says who is who, [`files`] brings images and snapshots to where they are
//! needed.

#![forbid(unsafe_code)]

pub mod files;
pub mod link;
pub mod message;
pub mod trust;


/// Fills a buffer from the kernel's random numbers.
pub(crate) fn fill_random(buffer: &mut [u8]) {
    let mut filled = 0;
    while filled < buffer.len() {
        // Once the kernel's generator is ready, this does not fail; a signal may cut it short.
        if let Ok(n) = rustix::rand::getrandom(&mut buffer[filled..], rustix::rand::GetRandomFlags::empty()) {
            filled += n;
        }
    }
}
