//! Free TCP ports, for servers that cannot choose their own.
//!
//! Tests run as many processes at once, so a port that is free when looked at may be taken a moment
//! later. A block of ports is therefore claimed by locking a file, for as long as the test lives.
//! Blocks lie below the ports that the system gives to outgoing connections, and leave room for
//! servers that also use each port plus 10,000.

use std::fs::{self, File};
use std::net::TcpListener;

/// Ports in a block.
pub const BLOCK: u16 = 8;
const FIRST: u16 = 10_240;
const BLOCKS: u16 = 1_200;

/// A block of free ports, this process's alone until it is dropped.
#[derive(Debug)]
pub struct Ports {
    first: u16,
    /// The lock; the system releases it with the process, however that ends.
    _claim: File,
}

impl Ports {
    /// Claims a block in which each port, and each plus 10,000, can be bound now.
    ///
    /// # Panics
    /// Where no block is free.
    pub fn claim() -> Self {
        let claims = std::env::temp_dir()
            .join(format!("muster-tests-ports-{}", rustix::process::getuid().as_raw()));
        fs::create_dir_all(&claims).expect("the folder of port claims can be made");
        // Start at different places, so that tests seldom meet.
        let begin = (std::process::id() % u32::from(BLOCKS)) as u16;
        for step in 0..BLOCKS {
            let block = (begin + step) % BLOCKS;
            let claim = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(claims.join(block.to_string()))
                .expect("a port claim opens");
            let first = FIRST + block * BLOCK;
            if claim.try_lock().is_ok()
                && (first..first + BLOCK).all(|port| can_bind(port) && can_bind(port + 10_000))
            {
                return Self { first, _claim: claim };
            }
        }
        panic!("all {BLOCKS} blocks of ports from {FIRST} on are in use");
    }

    /// The block's port number `index`.
    ///
    /// # Panics
    /// Beyond the block.
    pub fn port(&self, index: u16) -> u16 {
        assert!(index < BLOCK, "a block has {BLOCK} ports");
        self.first + index
    }
}

fn can_bind(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}
