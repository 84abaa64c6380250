//! `ci verify`: is a published image what its commit makes?
//!
//! The image says which commit it is of; nothing that it says is believed. The commit has to be one that a configured remote
//! has; it is checked out afresh, built by its own `ci`, and the two images are compared, down to the file where they part.

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

/// What came of it, for programs.
#[derive(Debug, Serialize)]
struct Finding<'a> {
    /// The version of this schema.
    schema: u32,
    image: String,
    digest: &'a str,
    revision: &'a str,
    platform: String,
    rebuilt: &'a str,
    /// Whether the two digests are one.
    reproduced: bool,
    /// Where the two images part.
    differences: &'a [Difference],
    /// Where their toolchains part.
    toolchain: &'a [Difference],
}

/// Verifies the image that was named.
///
/// # Errors
/// When it is not what its commit makes, or of no commit that a remote has (exit 1), its name is wrong (exit 2), the registry
/// cannot be reached or there is no engine (exit 3), or the registry refuses (exit 4).
pub async fn run(
    name: &str,
    invocation: &Invocation,
    reporter: &Reporter,
) -> Result<ExitCode, Failure> {
    let published: ImageName = name.parse()?;
    let github = GitHub::from_env();
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
    let layers = tempfile::tempdir().or_environment("cannot make a folder for the image")?;
    let image = fetch(&client, &published, layers.path()).await?;
    let digest = &image.manifest.digest;
    reporter.header(&format!(
        "{name} has the digest {digest}, is for {}, and says that it is of commit {}",
        image.platform, image.revision
    ));
    checkout.require_on_a_remote(&image.revision, reporter)?;

    let rebuilt = rebuild::run(&checkout, &directory, &image, invocation, reporter).await?;
    let ours =
        archive::read_digest(&rebuilt.archive).or_environment("the rebuilt image is damaged")?;
    let differences = if ours == *digest {
        Vec::new()
    } else {
        compare::images(
            &image.manifest.bytes,
            &image.config,
            layers.path(),
            &rebuilt.archive,
        )
        .or_environment("the two images cannot be compared")?
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
        let text = serde_json::to_string_pretty(&finding)
            .or_environment("the finding cannot be written as JSON")?;
        report::data(&format!("{text}\n"));
    }
    if ours == *digest {
        if !json {
            report::data(&format!(
                "{}/{}@{digest} is commit {}, bit for bit\n",
                published.registry, published.repository, image.revision
            ));
        }
        return Ok(ExitCode::Success);
    }
    Err(parted(name, &image, &ours, &differences, &toolchain))
}

/// A token is sent to GitHub's own registry and this machine only.
fn trusted(registry: &Registry) -> bool {
    registry.is_loopback() || registry.to_string() == Registry::GHCR
}

/// Where the two images' toolchains part, as far as both say.
fn toolchains(image: &Image, rebuilt: &rebuild::Rebuilt) -> Result<Vec<Difference>, Failure> {
    let labels = |config: &[u8]| {
        serde_json::from_slice::<ImageConfiguration>(config)
            .or_environment("an image's configuration cannot be read")
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

fn parted(
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
        "Somebody changed the image after it was built, or the build is not reproducible."
    } else {
        output.push_str("\nmade with another toolchain:\n");
        for difference in toolchain {
            output.push_str(&format!("{difference}\n"));
        }
        "The toolchains differ, which explains a difference in what was compiled: verify with the one that the image was made with."
    };
    Failure::gate(format!(
        "{name} is not what commit {} makes here",
        image.revision
    ))
    .output(output)
    .hint(hint)
}
