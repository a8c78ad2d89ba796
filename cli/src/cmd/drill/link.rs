//! A wire to the NATS server that can be cut: each process of a drill has one of its own.

use std::net::SocketAddr;

use muster_protocol::{Error, Result};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// The wire of one process. It ends with this value.
pub(super) struct Link {
    address: SocketAddr,
    cut: watch::Sender<bool>,
}

impl Link {
    /// A wire to `server` (`host:port`).
    pub(super) async fn new(server: String) -> Result<Self> {
        let refuse = |e: std::io::Error| Error::invalid(format!("cannot listen on loopback: {e}"));
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(refuse)?;
        let address = listener.local_addr().map_err(refuse)?;
        let (cut, is_cut) = watch::channel(false);
        tokio::spawn(serve(listener, server, is_cut));
        Ok(Self { address, cut })
    }

    /// Where a process finds it.
    pub(super) fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Cuts or mends it; connections that stand when it is cut are gone.
    pub(super) fn set_cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }
}

async fn serve(listener: TcpListener, server: String, mut is_cut: watch::Receiver<bool>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // The link is gone, and with it everybody who could use it.
            changed = is_cut.changed() => if changed.is_err() { return } else { continue },
        };
        if let Ok((near, _)) = accepted
            && !*is_cut.borrow()
        {
            tokio::spawn(carry(near, server.clone(), is_cut.clone()));
        }
    }
}

async fn carry(mut near: TcpStream, server: String, mut is_cut: watch::Receiver<bool>) {
    let Ok(mut far) = TcpStream::connect(&server).await else { return };
    tokio::select! {
        // Either side may end it; what was on its way is then nobody's concern.
        ended = copy_bidirectional(&mut near, &mut far) => drop(ended),
        _ = is_cut.wait_for(|cut| *cut) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_wire_carries_is_cut_and_mended() {
        let echo = TcpListener::bind("127.0.0.1:0").await.expect("listener");
        let server = echo.local_addr().expect("address").to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = echo.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    drop(tokio::io::copy(&mut read, &mut write).await);
                });
            }
        });
        let link = Link::new(server).await.expect("link");
        let say = async || {
            let mut stream = TcpStream::connect(link.address).await?;
            stream.write_all(b"x").await?;
            stream.read_u8().await.map(|byte| (byte, stream))
        };
        let (byte, mut standing) = say().await.expect("carried");
        assert_eq!(byte, b'x');
        link.set_cut(true);
        assert!(standing.read_u8().await.is_err(), "what stood is gone");
        assert!(say().await.is_err());
        link.set_cut(false);
        assert_eq!(say().await.expect("mended").0, b'x');
    }
}
