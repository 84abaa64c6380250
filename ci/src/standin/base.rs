//! The stand-in for a base image: a small Debian with the usual runtime dependencies of services (a C library, OpenSSL, CA
//! certificates), as an OCI image layout with one layer.

use std::path::PathBuf;

use super::debian;
use super::made::{blocking, ca_bundle, keep_folder, key_of};
use crate::image::archive::{self, Compression, ImageConfig, Platform};
use common::failure::{Failure, OrFail};
use common::file_tree;
use common::progress::Progress;
use common::provision::Consent;

const PACKAGES: &[&str] = &["ca-certificates", "libgcc-s1", "libssl3"];
const LAYOUT: &str = "layout";

/// An OCI image layout that replaces a base image.
#[derive(Clone, Debug)]
pub struct BaseLayout {
    /// The directory of the layout.
    pub layout: PathBuf,
    pub digest: String,
}

pub(super) async fn layout(
    consent: Consent<'_>,
    progress: &dyn Progress,
) -> Result<BaseLayout, Failure> {
    let certificates = ca_bundle()?;
    let key = key_of(&[
        include_bytes!("base.rs"),
        include_bytes!("debian.rs"),
        file_tree::SOURCE,
        &certificates,
    ]);
    let folder = keep_folder(
        "base-",
        &format!("base-{}-{key}", debian::VERSION),
        "the stand-in base image (about a minute)",
        progress,
        |target| async move {
            let root = target.join("root");
            std::fs::create_dir_all(&root).or_environment("cannot create a directory")?;
            debian::build(&root, PACKAGES, &certificates, consent, progress).await?;
            blocking(move || {
                let config = ImageConfig {
                    env: vec![(
                        "PATH".into(),
                        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into(),
                    )],
                    platform: Platform::here(),
                    ..ImageConfig::default()
                };
                let archive = target.join("image.tar");
                archive::write_archive(&archive, None, &config, Compression::Gzip, |layer| {
                    file_tree::append(layer, &root)
                })?;
                tar::Archive::new(std::fs::File::open(&archive)?).unpack(target.join(LAYOUT))?;
                std::fs::remove_file(&archive)?;
                std::fs::remove_dir_all(&root)
            })
            .await
        },
    )
    .await?;
    let layout = folder.join(LAYOUT);
    let digest = archive::Base::read(&layout)
        .or_environment(format!("{} is damaged", layout.display()))
        .map_err(|failure| {
            failure.hint(format!(
                "Remove {}; the next run rebuilds it.",
                folder.display()
            ))
        })?
        .digest;
    Ok(BaseLayout { layout, digest })
}
