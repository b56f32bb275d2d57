//! The network namespace that sockets are made in.

use std::{io, os::fd::AsRawFd as _};

use socket2::{Domain, Socket, Type};

/// What tells the network namespace of the calling thread from all others of this boot, also from those that are gone:
/// `SO_NETNS_COOKIE` (Linux 5.14). Its inode number is given to another one as soon as it is free.
///
/// # Errors
/// When there is no descriptor for a socket.
pub fn namespace_cookie() -> io::Result<u64> {
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    let mut cookie = 0_u64;
    let mut length = size_of_val(&cookie) as libc::socklen_t;
    let (option, length) = ((&raw mut cookie).cast(), &raw mut length);
    // SAFETY: `option` points to `length` bytes, which the kernel may write.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, option, length)
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}
