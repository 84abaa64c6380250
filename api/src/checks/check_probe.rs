//! The probe of a check, which follows changes of the files of its TLS options.

use super::{
    clients::Clients,
    probe_error::ProbeError,
    target::{Probe, Target},
    tls_options::{Stamp, TlsOptions},
};

/// Probes the target of one check.
pub struct CheckProbe {
    target: Target,
    tls: TlsOptions,
    /// What checks without TLS options share.
    clients: Clients,
    current: Option<Current>,
}

struct Current {
    probe: Probe,
    /// The files that the probe was created with.
    stamps: Vec<Stamp>,
}

impl CheckProbe {
    pub(super) const fn new(target: Target, tls: TlsOptions, clients: Clients) -> Self {
        Self {
            target,
            tls,
            clients,
            current: None,
        }
    }

    /// Probes the target once. The future may be dropped at any time, for example by a timeout.
    ///
    /// # Errors
    /// Returns an error if the target does not respond as expected, or if a file of the TLS options cannot be read.
    pub async fn run(&mut self) -> Result<(), ProbeError> {
        // Certificates are renewed while the service runs, and a missing file may still be mounted.
        let stamps = self.tls.stamps();
        let kept = self.current.take();
        let current = match kept.filter(|current| current.stamps == stamps) {
            Some(current) => current,
            None => Current {
                probe: self.new_probe()?,
                stamps,
            },
        };
        self.current.insert(current).probe.run().await
    }

    fn new_probe(&self) -> Result<Probe, ProbeError> {
        let clients = self.clients.with(&self.tls);
        Ok(self.target.probe(&clients.map_err(ProbeError)?))
    }
}
