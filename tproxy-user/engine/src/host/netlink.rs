//! One netlink socket: send a request, collect the answer.

use std::{fmt, io};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};

/// The kernel fills at most 32 KiB per message of a dump (`netlink_dump()`).
const BUFFER: usize = 64 * 1024;
/// A dump during which the table changed may lack entries; it is asked for again, but not for ever:
/// where routes never rest (BGP), what stayed put is reported in every try.
const TRIES: usize = 4;

pub(super) struct Netlink(Socket);

enum Dump {
    Consistent,
    Interrupted,
}

impl Netlink {
    /// `protocol` is one of [`netlink_sys::protocols`].
    pub(super) fn open(protocol: isize) -> io::Result<Self> {
        let socket = Socket::new(protocol)?;
        // Makes the kernel apply the filters in a dump request's header instead of ignoring them (Linux 4.20).
        socket.set_netlink_get_strict_chk(true)?;
        Ok(Self(socket))
    }

    /// Asks for everything `request` selects. An inconsistent dump is repeated, so `each` may see the same
    /// message more than once.
    pub(super) fn dump<Q, A>(&self, request: Q, mut each: impl FnMut(A)) -> io::Result<()>
    where
        Q: NetlinkSerializable + Clone,
        A: NetlinkDeserializable + fmt::Debug,
    {
        for _ in 0..TRIES {
            self.send(request.clone(), NLM_F_DUMP)?;
            if let Dump::Consistent = self.collect(&mut each)? {
                break;
            }
        }
        Ok(())
    }

    /// Asks for the one thing that `request` names.
    pub(super) fn get<Q, A>(&self, request: Q) -> io::Result<Option<A>>
    where
        Q: NetlinkSerializable,
        A: NetlinkDeserializable + fmt::Debug,
    {
        self.send(request, NLM_F_ACK)?;
        let mut found = None;
        self.collect(&mut |answer| found = Some(answer))?;
        Ok(found)
    }

    /// Has one thing done; `flags` are added to `NLM_F_REQUEST | NLM_F_ACK`.
    pub(super) fn request<Q>(&self, request: Q, flags: u16) -> io::Result<()>
    where
        Q: NetlinkSerializable,
    {
        self.send(request, NLM_F_ACK | flags)?;
        self.collect(&mut |_: Ignored| {}).map(drop)
    }

    fn send<Q: NetlinkSerializable>(&self, request: Q, flags: u16) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let kernel = SocketAddr::new(0, 0);
        self.0.send_to(&bytes, &kernel, 0).map(drop)
    }

    fn collect<A>(&self, each: &mut impl FnMut(A)) -> io::Result<Dump>
    where
        A: NetlinkDeserializable + fmt::Debug,
    {
        let mut buffer = Vec::with_capacity(BUFFER);
        let mut outcome = Dump::Consistent;
        loop {
            buffer.clear();
            self.0.recv(&mut buffer, 0)?;
            let mut rest = buffer.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<A>::deserialize(rest).map_err(invalid)?;
                let length = usize::try_from(message.header.length).map_err(invalid)?;
                // Messages are padded to four bytes, the last one of a datagram perhaps not.
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                if message.header.flags & NLM_F_DUMP_INTR != 0 {
                    outcome = Dump::Interrupted;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(answer) => each(answer),
                    NetlinkPayload::Error(error) => {
                        return error.code.map_or(Ok(Dump::Consistent), |_| Err(error.to_io()));
                    }
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(io::Error::from_raw_os_error(-done.code));
                    }
                    NetlinkPayload::Done(_) => return Ok(outcome),
                    _ => {}
                }
            }
        }
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// An answer of which only counts that there is one.
#[derive(Debug)]
pub(super) struct Ignored;

impl NetlinkDeserializable for Ignored {
    type Error = std::convert::Infallible;

    fn deserialize(_: &NetlinkHeader, _: &[u8]) -> Result<Self, Self::Error> {
        Ok(Self)
    }
}
