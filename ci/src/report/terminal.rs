//! Connects this terminal to a shell in a container.

use std::io::{IsTerminal, Read, Write};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use common::failure::{Failure, OrFail};

/// The size of a terminal whose size is unknown.
const SIZE: (u16, u16) = (24, 80);

/// Connects standard input and output to the shell on `port` of this machine until it ends. A terminal is in raw mode meanwhile, so
/// that the shell gets every key, and the shell's terminal follows its size.
///
/// # Errors
/// When the shell does not accept the connection (exit code 3).
pub async fn attach(port: u16, token: &SecretString) -> Result<(), Failure> {
    let lost = || "lost the connection to the shell";
    let mut stream = TcpStream::connect(("127.0.0.1", port))
        .await
        .or_environment("cannot connect to the shell")?;
    stream
        .write_all(hello(token).as_bytes())
        .await
        .or_environment(lost())?;
    let _raw = RawMode::enter()?;
    let (mut from_shell, mut to_shell) = stream.split();
    let mut input = standard_input();
    let sending = async {
        while let Some(bytes) = input.recv().await {
            // The shell may have ended.
            if to_shell.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = to_shell.shutdown().await;
    };
    let receiving = async {
        let mut buffer = [0; 8192];
        loop {
            match from_shell.read(&mut buffer).await {
                // A shell that ends may reset the connection.
                Ok(0) | Err(_) => return Ok(()),
                Ok(read) => {
                    let mut out = std::io::stdout().lock();
                    out.write_all(&buffer[..read])
                        .and_then(|()| out.flush())
                        .or_environment("cannot write to standard output")?;
                }
            }
        }
    };
    tokio::select! {
        result = receiving => result,
        () = async { tokio::join!(sending, follow_size(port, token)); } => Ok(()),
    }
}

/// The first line of a connection.
fn hello(token: &SecretString) -> String {
    let (rows, columns) = console::Term::stdout().size_checked().unwrap_or(SIZE);
    let term = std::env::var("TERM").unwrap_or_default();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "+-._".contains(c);
    let term = if term.is_empty() || !term.chars().all(is_plain) {
        "dumb"
    } else {
        &term
    };
    format!("{} {rows} {columns} {term}\n", token.expose_secret())
}

/// Standard input, read by a thread that ends with the process: reading from a terminal cannot be cancelled.
fn standard_input() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = std::io::stdin().lock().read(&mut buffer) {
            if sender.blocking_send(buffer[..read].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Tells the shell the size of this terminal whenever it changes. Never returns.
async fn follow_size(port: u16, token: &SecretString) {
    let mut last = console::Term::stdout().size_checked();
    loop {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let size = console::Term::stdout().size_checked();
        if size != last
            && let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await
        {
            // The next change is another chance.
            let _ = stream.write_all(hello(token).as_bytes()).await;
            last = size;
        }
    }
}

/// Restores the terminal's mode when it is dropped.
struct RawMode {
    #[cfg(unix)]
    original: nix::sys::termios::Termios,
}

impl RawMode {
    /// Enters raw mode, if standard input is a terminal.
    #[cfg(unix)]
    fn enter() -> Result<Option<Self>, Failure> {
        use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let original = tcgetattr(&stdin).or_environment("cannot read the terminal's mode")?;
        let mut raw = original.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&stdin, SetArg::TCSANOW, &raw)
            .or_environment("cannot change the terminal's mode")?;
        Ok(Some(Self { original }))
    }

    #[cfg(not(unix))]
    fn enter() -> Result<Option<Self>, Failure> {
        Ok(None)
    }
}

#[cfg(unix)]
impl Drop for RawMode {
    fn drop(&mut self) {
        use nix::sys::termios::{SetArg, tcsetattr};
        // A terminal that is gone needs no mode.
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.original);
    }
}
