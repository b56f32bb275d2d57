//! Links of eBPF programs that have a name in the BPF file system. Removing the name, or giving it to another one, detaches
//! a while later: the file's inode goes with an RCU grace period, and the link then with a work queue
//! (`bpf_link_put_deferred()`). No library has the call that detaches at once.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

/// linux/bpf.h, `enum bpf_cmd`
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_LINK_DETACH: libc::c_long = 34;

/// One that was opened by its name.
#[derive(Debug)]
pub struct PinnedLink(OwnedFd);

/// linux/bpf.h, `union bpf_attr`, for `BPF_OBJ_*`
#[repr(C)]
struct ObjectAttributes {
    path: u64,
    descriptor: u32,
    flags: u32,
}

/// linux/bpf.h, `union bpf_attr`, for `BPF_LINK_DETACH`
#[repr(C)]
struct DetachAttributes {
    link: RawFd,
}

impl PinnedLink {
    /// # Errors
    /// When there is none, or the kernel refuses.
    pub fn open(pin: &Path) -> io::Result<Self> {
        let path = CString::new(pin.as_os_str().as_bytes())?;
        let attributes = ObjectAttributes { path: path.as_ptr() as u64, descriptor: 0, flags: 0 };
        // SAFETY: the attributes are those of the command, and the path lives as long as the call takes.
        let descriptor = unsafe { bpf(BPF_OBJ_GET, &attributes) }?;
        // SAFETY: the kernel has made it for this call.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(descriptor) }))
    }

    /// Has no packet meet its program from the moment that this returns, whoever else holds the link.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn detach(self) -> io::Result<()> {
        let attributes = DetachAttributes { link: self.0.as_raw_fd() };
        // SAFETY: the attributes are those of the command.
        unsafe { bpf(BPF_LINK_DETACH, &attributes) }.map(drop)
    }
}

/// bpf(2)
///
/// # Safety
/// The attributes have to be those of the command.
unsafe fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<i32> {
    // SAFETY: the kernel reads as many bytes as there are; the rest is as the caller says.
    match unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) } {
        ..0 => Err(io::Error::last_os_error()),
        result => Ok(result as i32),
    }
}
