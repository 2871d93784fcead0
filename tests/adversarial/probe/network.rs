//! What can be reached: the host's listeners, the cloud's metadata, sockets of odd families, and one's own loopback.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixStream};
use std::time::Duration;

use crate::sys;
use crate::verdict::Verdict;

const PATIENCE: Duration = Duration::from_millis(400);

pub fn run(name: &str, arguments: &[String]) -> Option<Verdict> {
    Some(match name {
        "net.tcp" | "net.metadata" => Verdict::any(
            arguments
                .iter()
                .map(|address| Verdict::io(tcp(address), &**address)),
        ),
        "net.udp" => Verdict::io(udp(&arguments[0], b"hello"), &*arguments[0]),
        // The question for the address of `localhost.`
        "net.dns" => Verdict::io(
            udp(
                &arguments[0],
                b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x09localhost\0\0\x01\0\x01",
            ),
            &*arguments[0],
        ),
        "net.abstract" => Verdict::io(
            UnixAddr::from_abstract_name(&arguments[0])
                .and_then(|name| UnixStream::connect_addr(&name)),
            &*arguments[0],
        ),
        "net.unixpath" => Verdict::io(UnixStream::connect(&arguments[0]), &*arguments[0]),
        "net.vsock" => opened(40, 1, 0),
        "net.raw" => Verdict::any([opened(2, 3, 1), opened(17, 3, 0x0300), opened(10, 3, 58)]),
        "net.families" => families(),
        "net.own_loopback" => Verdict::io(own_loopback(), "127.0.0.1"),
        _ => return None,
    })
}

fn tcp(address: &str) -> std::io::Result<()> {
    let address: SocketAddr = address.parse().map_err(std::io::Error::other)?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // The world greets whoever comes.
    stream.read_exact(&mut [0; 5])
}

fn udp(address: &str, question: &[u8]) -> std::io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send_to(
        question,
        address
            .parse::<SocketAddr>()
            .map_err(std::io::Error::other)?,
    )?;
    socket.recv_from(&mut [0; 512]).map(|_| ())
}

fn opened(family: i32, kind: i32, protocol: i32) -> Verdict {
    Verdict::of(
        sys::socket(family, kind, protocol).and_then(|fd| sys::close(fd as i32)),
        format!("family {family} type {kind}"),
    )
}

/// Every family but the four that programs use (unix, inet, inet6, netlink).
fn families() -> Verdict {
    let odd = (1..=46).filter(|family| ![1, 2, 10, 16].contains(family));
    let found = odd.filter(|family| {
        [1, 2, 3, 5].iter().any(|kind| {
            sys::socket(*family, *kind, 0)
                .and_then(|fd| sys::close(fd as i32))
                .is_ok()
        })
    });
    Verdict::found(&found.map(|family| family.to_string()).collect::<Vec<_>>())
}

fn own_loopback() -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (mut server, _) = listener.accept()?;
    client.write_all(b"ping")?;
    server.read_exact(&mut [0; 4])
}
