//! Linux error numbers.

use std::fmt;

/// An error number as a system call returns it, negated.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub(crate) i32);

impl Errno {
    /// The value that goes into `rax`.
    pub(crate) const fn to_rax(self) -> u64 {
        (-(self.0 as i64)) as u64
    }

    /// Linux's number.
    pub const fn number(self) -> i32 {
        self.0
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Errno({})", self.0)
    }
}

macro_rules! errnos {
    ($($name:ident)*) => { $(pub(crate) const $name: Errno = Errno(libc::$name);)* };
}

// A macro, since a list of sixty constants that repeat the name three times each hides a slip.
errnos! {
    EPERM ENOENT ESRCH EINTR EIO ENXIO ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT EBUSY EEXIST EXDEV
    ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY EFBIG ENOSPC ESPIPE EROFS EMLINK EPIPE EDOM ERANGE EDEADLK
    ENAMETOOLONG ENOSYS ENOTEMPTY ELOOP ENODATA ENOTSOCK EDESTADDRREQ EMSGSIZE EPROTOTYPE ENOPROTOOPT
    EPROTONOSUPPORT ESOCKTNOSUPPORT EOPNOTSUPP EAFNOSUPPORT EADDRINUSE EADDRNOTAVAIL ENETUNREACH
    EISCONN ENOTCONN ETIMEDOUT ECONNREFUSED EINPROGRESS EALREADY ENOBUFS ETOOMANYREFS E2BIG EOVERFLOW ENOLCK
    ECONNABORTED
}
