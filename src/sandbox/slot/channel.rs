//! Datagrams with descriptors beside them, over a SOCK_SEQPACKET pair: one call is one whole message, and the other
//! side's death is an end of file.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};

/// Descriptors in one message: standard output, standard error, one for each hierarchy of cgroups, a root, a memfd.
pub(in crate::sandbox) const FDS_MAX: usize = 16;

const CONTROL_LEN: usize = rustix::cmsg_space!(ScmRights(FDS_MAX));

/// A pair of connected sockets, closed on exec.
pub(in crate::sandbox) fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
}

/// Sends one message; never blocks. The reader takes a message in before it gets the next, so a full buffer means
/// that it has stopped reading.
pub(in crate::sandbox) fn send(
    socket: impl AsFd,
    message: &[IoSlice<'_>],
    fds: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); CONTROL_LEN];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::INVAL);
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::io::retry_on_intr(|| sendmsg(&socket, message, &mut control, flags)).map(drop)
}

/// One received message.
pub(in crate::sandbox) struct Received {
    /// Bytes of it; 0 is the end of file.
    pub(in crate::sandbox) len: usize,
    pub(in crate::sandbox) fds: Vec<OwnedFd>,
}

/// Receives one message into `buffer`. A message that does not fit, or has more descriptors than it may have, is
/// `EMSGSIZE`.
pub(in crate::sandbox) fn receive(
    socket: impl AsFd,
    buffer: &mut [u8],
    wait: bool,
) -> Result<Received, Errno> {
    let mut space = [MaybeUninit::uninit(); CONTROL_LEN];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut flags = RecvFlags::CMSG_CLOEXEC;
    if !wait {
        flags |= RecvFlags::DONTWAIT;
    }
    let got = rustix::io::retry_on_intr(|| {
        recvmsg(&socket, &mut [IoSliceMut::new(buffer)], &mut control, flags)
    })?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(list) = message {
            fds.extend(list);
        }
    }
    if got
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(Errno::MSGSIZE);
    }
    Ok(Received {
        len: got.bytes,
        fds,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_keep_their_bounds_and_their_descriptors() {
        let (a, b) = pair().unwrap();
        let (read, write) = std::io::pipe().unwrap();
        send(
            &a,
            &[IoSlice::new(b"one"), IoSlice::new(b"two")],
            &[write.as_fd()],
        )
        .unwrap();
        send(&a, &[IoSlice::new(b"next")], &[]).unwrap();
        drop(write);
        let mut buffer = [0; 16];
        let mut got = receive(&b, &mut buffer, true).unwrap();
        assert_eq!(&buffer[..got.len], b"onetwo");
        rustix::io::write(got.fds.pop().unwrap(), b"through").unwrap();
        let mut said = [0; 16];
        assert_eq!(rustix::io::read(&read, &mut said), Ok(7));
        let got = receive(&b, &mut buffer, false).unwrap();
        assert_eq!((&buffer[..got.len], got.fds.len()), (&b"next"[..], 0));
        assert_eq!(
            receive(&b, &mut buffer, false).err(),
            Some(Errno::WOULDBLOCK)
        );
        drop(a);
        assert_eq!(receive(&b, &mut buffer, true).unwrap().len, 0);
    }

    #[test]
    fn a_message_that_does_not_fit_is_an_error() {
        let (a, b) = pair().unwrap();
        send(&a, &[IoSlice::new(&[1; 17])], &[]).unwrap();
        assert_eq!(receive(&b, &mut [0; 16], true).err(), Some(Errno::MSGSIZE));
    }
}
