//! Networks of our own: loopback and a pair of virtual cables, TCP and UDP of both families, resets, losses.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{pause, step};

/// Nobody waits longer for what may never come.
const SOON: Option<Duration> = Some(Duration::from_millis(500));

pub(crate) fn all() {
    step("links", links);
    for address in ["127.0.0.1:0", "[::1]:0"] {
        step("tcp", || tcp(address));
        step("udp", || udp(address));
        step("reset", || reset(address));
    }
    step("unix", unix);
    step("losses", losses);
}

/// Runs a tool of iproute2, which may not be there.
fn tool(line: &str) -> io::Result<()> {
    let mut words = line.split(' ');
    let status = Command::new(words.next().unwrap_or_default())
        .args(words)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    match status.success() {
        true => Ok(()),
        false => Err(io::Error::other(line.to_owned())),
    }
}

fn links() -> io::Result<()> {
    tool("ip link set lo up")?;
    tool("ip link add one type veth peer name other")?;
    for link in ["one", "other"] {
        tool(&format!("ip link set {link} up"))?;
    }
    tool("ip addr add 10.77.0.1/24 dev one")?;
    step("qdisc", || tool("tc qdisc add dev one root pfifo limit 100"));
    Ok(())
}

fn tcp(address: &str) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (mut server, _) = listener.accept()?;
    let sent = std::thread::spawn(move || -> io::Result<()> {
        for _ in 0..20 {
            client.write_all(&[5; 50_000])?;
        }
        Ok(())
    });
    let mut bytes = vec![0; 20_000];
    while server.read(&mut bytes)? > 0 {}
    sent.join().unwrap_or(Ok(()))
}

fn udp(address: &str) -> io::Result<()> {
    let (one, other) = (UdpSocket::bind(address)?, UdpSocket::bind(address)?);
    other.set_read_timeout(SOON)?;
    one.set_read_timeout(SOON)?;
    let to = other.local_addr()?;
    one.send_to(&[7; 10], to)?;
    other.recv_from(&mut [0; 20])?;
    // Room for little more than nothing: what comes after is dropped.
    let full: libc::c_int = 1;
    // SAFETY: the value is as large as is said.
    unsafe {
        libc::setsockopt(
            other.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUF,
            (&raw const full).cast(),
            4,
        )
    };
    for _ in 0..20 {
        one.send_to(&[7; 1000], to)?;
    }
    drop(other);
    // To a port where nobody is any more: the answer is an error.
    one.connect(to)?;
    one.send(&[1])?;
    pause(2);
    let _ = one.send(&[1]);
    let _ = one.recv(&mut [0; 10]);
    Ok(())
}

/// Connections that are refused, and that are cut off.
fn reset(address: &str) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    let at: SocketAddr = listener.local_addr()?;
    let client = TcpStream::connect(at)?;
    let (mut server, _) = listener.accept()?;
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // SAFETY: the structure is as large as is said.
    unsafe {
        libc::setsockopt(
            client.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as u32,
        )
    };
    drop(client);
    server.set_read_timeout(SOON)?;
    let _ = server.read(&mut [0; 10]);
    let client = TcpStream::connect(at)?;
    let (mut server, _) = listener.accept()?;
    server.write_all(b"not read")?;
    pause(2);
    drop(client);
    let _ = server.write_all(b"too late");
    drop(listener);
    let _ = TcpStream::connect(at);
    Ok(())
}

fn unix() -> io::Result<()> {
    let (mut one, mut other) = UnixStream::pair()?;
    one.write_all(b"some bytes")?;
    other.read_exact(&mut [0; 10])?;
    let (one, other) = UnixDatagram::pair()?;
    one.send(b"some bytes")?;
    other.recv(&mut [0; 10])?;
    Ok(())
}

/// Packets that get lost on the way, and to neighbours that do not answer.
fn losses() -> io::Result<()> {
    let socket = UdpSocket::bind("10.77.0.1:0")?;
    socket.send_to(b"is there anybody?", "10.77.0.2:9")?;
    let listener = TcpListener::bind("10.77.0.1:0")?;
    let at = listener.local_addr()?;
    let mut client = TcpStream::connect(at)?;
    let (mut server, _) = listener.accept()?;
    // Between the ends of this connection nothing passes any more.
    step("loss", || {
        tool("tc qdisc add dev lo root handle 1: tbf rate 8bit burst 2000 limit 1")
    });
    client.set_nodelay(true)?;
    client.set_write_timeout(SOON)?;
    for _ in 0..4 {
        client.write_all(&[6; 1500])?;
        pause(20);
    }
    pause(300);
    step("no loss", || tool("tc qdisc del dev lo root"));
    server.set_read_timeout(SOON)?;
    let mut bytes = [0; 6000];
    let _ = server.read_exact(&mut bytes);
    Ok(())
}
