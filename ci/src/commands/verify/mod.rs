//! `ci verify`: rebuilds the commit of a published image and compares the two images.
//!
//! The image's label names the commit, but nothing in the image is trusted. A configured remote must have the commit, which is
//! checked out and built by its own `ci`. The two images are then compared, down to the files that differ.

mod compare;
mod published;
mod rebuild;

use oci_spec::image::ImageConfiguration;
use serde::Serialize;

use self::compare::Difference;
use self::published::{Image, fetch};
use crate::image::archive;
use crate::image::labels::{COMPILER, LINKER};
use crate::image::provenance::{self, Statement};
use crate::image::registry::{Access, Client};
use crate::model::image_name::{ImageName, Registry};
use crate::report::{self, Reporter};
use crate::settings::{Format, Invocation};
use crate::source::checkout::Checkout;
use crate::trust::authority::GitHub;
use common::failure::{ExitCode, Failure, OrFail};
use common::scratch;

/// The result in JSON.
#[derive(Debug, Serialize)]
struct Finding<'a> {
    /// The version of the schema.
    schema: u32,
    image: String,
    digest: &'a str,
    revision: &'a str,
    platform: String,
    rebuilt: &'a str,
    /// Whether the two digests are equal.
    reproduced: bool,
    differences: &'a [Difference],
    /// Differences between the toolchains.
    toolchain: &'a [Difference],
}

/// Verifies the image called `name`.
///
/// # Errors
/// When the images differ, or no remote has the commit (exit code 1), the name is invalid (exit code 2), the registry or an
/// engine is unavailable (exit code 3), or the registry denies access (exit code 4).
pub(super) async fn run(
    name: &str,
    invocation: &Invocation,
    reporter: &Reporter,
) -> Result<ExitCode, Failure> {
    let published: ImageName = name.parse()?;
    let github = GitHub::from_env(invocation.options.release_branch.as_deref());
    let json = invocation.format(&github)? == Format::Json;
    let directory = invocation.directory()?;
    let checkout = Checkout::discover(&directory)?;
    let credential = github.credential().filter(|_| trusted(&published.registry));
    let client = Client::new(
        &published.registry,
        &published.repository,
        credential.as_ref(),
        Access::Read,
    )?;
    let layers = scratch::folder().or_environment("cannot create a directory for the image")?;
    let image = fetch(&client, &published, layers.path()).await?;
    let digest = &image.manifest.digest;
    reporter.header(&format!(
        "{name} has digest {digest}, platform {} and a label with commit {}",
        image.platform, image.revision
    ));
    checkout.require_on_a_remote(&image.revision, reporter)?;

    let rebuilt = rebuild::run(&checkout, &directory, &image, invocation, reporter).await?;
    let ours =
        archive::read_digest(&rebuilt.archive).or_environment("cannot read the rebuilt image")?;
    let differences = if ours == *digest {
        Vec::new()
    } else {
        compare::images(
            &image.manifest.bytes,
            &image.config,
            layers.path(),
            &rebuilt.archive,
        )
        .or_environment("cannot compare the two images")?
    };
    let toolchain = toolchains(&image, &rebuilt)?;
    if json {
        let finding = Finding {
            schema: 1,
            image: published.to_string(),
            digest,
            revision: image.revision.as_str(),
            platform: image.platform.to_string(),
            rebuilt: &ours,
            reproduced: ours == *digest,
            differences: &differences,
            toolchain: &toolchain,
        };
        let text =
            serde_json::to_string_pretty(&finding).or_environment("cannot serialize the result")?;
        report::data(&format!("{text}\n"));
    }
    if ours == *digest {
        if !json {
            report::data(&format!(
                "{}/{}@{digest} is reproduced from commit {}, bit for bit\n",
                published.registry, published.repository, image.revision
            ));
        }
        return Ok(ExitCode::Success);
    }
    Err(not_reproduced(
        name,
        &image,
        &ours,
        &differences,
        &toolchain,
    ))
}

/// Whether the token may be sent to the registry: GitHub's registry or this machine.
fn trusted(registry: &Registry) -> bool {
    registry.is_loopback() || registry.to_string() == Registry::GHCR
}

/// The differences between the toolchains, as far as both images record them.
fn toolchains(image: &Image, rebuilt: &rebuild::Rebuilt) -> Result<Vec<Difference>, Failure> {
    let labels = |config: &[u8]| {
        serde_json::from_slice::<ImageConfiguration>(config)
            .or_environment("cannot parse an image's configuration")
            .map(|config| config.labels_of_config().cloned().unwrap_or_default())
    };
    let ours = rebuilt.config()?;
    let (theirs, ours) = (labels(&image.config)?, labels(&ours)?);
    let of_labels = [("compiler", COMPILER), ("linker", LINKER)].map(|(name, label)| {
        (
            name.to_owned(),
            theirs.get(label).cloned(),
            ours.get(label).cloned(),
        )
    });
    let dependency = |of: Option<&Statement>, name| of.and_then(|it| it.dependency(name));
    let of_images = [provenance::TOOLCHAIN, provenance::BASE].map(|name| {
        (
            format!("{name} image"),
            dependency(image.provenance.as_ref(), name),
            dependency(rebuilt.provenance.as_ref(), name),
        )
    });
    Ok(of_labels
        .into_iter()
        .chain(of_images)
        .filter_map(|(place, published, rebuilt)| {
            let (published, rebuilt) = (published?, rebuilt?);
            (published != rebuilt).then_some(Difference {
                place,
                published,
                rebuilt,
            })
        })
        .collect())
}

fn not_reproduced(
    name: &str,
    image: &Image,
    ours: &str,
    differences: &[Difference],
    toolchain: &[Difference],
) -> Failure {
    let mut output = format!(
        "published: {}\nrebuilt:   {ours}\n\n",
        image.manifest.digest
    );
    for difference in differences {
        output.push_str(&format!("{difference}\n"));
    }
    let hint = if toolchain.is_empty() {
        "The image was changed after it was built, or the build is not reproducible."
    } else {
        output.push_str("\nbuilt with another toolchain:\n");
        for difference in toolchain {
            output.push_str(&format!("{difference}\n"));
        }
        "Verify with the toolchain that built the image: different toolchains compile different binaries."
    };
    Failure::gate(format!(
        "{name} differs from the image that commit {} builds",
        image.revision
    ))
    .output(output)
    .hint(hint)
}
