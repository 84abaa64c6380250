//! Compares two images: manifests, configurations, layers and files.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use oci_spec::image::ImageManifest;
use serde::Serialize;
use serde_json::Value;

use crate::image::archive;

/// The maximum unpacked size of a layer, in bytes, as a protection against decompression bombs.
const MAX_LAYER_SIZE: u64 = 1 << 30;
/// The maximum number of differences that are listed for a layer.
const MAX_LISTED: usize = 20;
/// The value if one of the images lacks something.
const NOTHING: &str = "(nothing)";

/// A difference between two images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Difference {
    /// The differing part, such as `config config.Labels.…` or `layer 1 /api: mode`.
    pub place: String,
    /// The value in the published image.
    pub published: String,
    /// The value in the rebuilt image.
    pub rebuilt: String,
}

impl Difference {
    fn new(place: impl Into<String>, published: impl ToString, rebuilt: impl ToString) -> Self {
        Self {
            place: place.into(),
            published: published.to_string(),
            rebuilt: rebuilt.to_string(),
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            place,
            published,
            rebuilt,
        } = self;
        write!(
            f,
            "{place}\n  published: {published}\n  rebuilt:   {rebuilt}"
        )
    }
}

/// Compares the published image, with its layers as files in `layers`, to the image in the archive `rebuilt`.
///
/// # Errors
/// When an image cannot be read, or a layer's compression is not supported.
pub(super) fn images(
    manifest: &[u8],
    config: &[u8],
    layers: &Path,
    rebuilt: &Path,
) -> io::Result<Vec<Difference>> {
    let ours = archive::read_entry(
        rebuilt,
        &archive::blob_path(&archive::read_digest(rebuilt)?),
    )?;
    let our_config = archive::read_entry(
        rebuilt,
        &archive::blob_path(&archive::read_config_digest(rebuilt)?),
    )?;
    let mut found = json("manifest", manifest, &ours, &["config", "layers"])?;
    // rootfs has the digests of the layers, which are compared below.
    found.extend(json("config", config, &our_config, &["rootfs"])?);
    let (theirs, ours) = (layers_of(manifest)?, layers_of(&ours)?);
    if theirs.len() != ours.len() {
        found.push(Difference::new(
            "number of layers",
            theirs.len(),
            ours.len(),
        ));
    }
    for (number, (their, our)) in theirs.iter().zip(&ours).enumerate() {
        if their == our {
            continue;
        }
        let place = format!("layer {}", number + 1);
        found.push(Difference::new(place.clone(), their, our));
        let their = decompress(File::open(layers.join(their.replace(':', "-")))?)?;
        let our = decompress(&archive::read_entry(rebuilt, &archive::blob_path(our))?[..])?;
        found.extend(files(&place, &their, &our)?);
    }
    if found.is_empty() {
        let what = "bytes of manifest or configuration";
        found.push(Difference::new(
            what,
            "other formatting",
            "the formatting of ci",
        ));
    }
    Ok(found)
}

fn layers_of(manifest: &[u8]) -> io::Result<Vec<String>> {
    let manifest: ImageManifest = serde_json::from_slice(manifest).map_err(io::Error::other)?;
    let layers = manifest.layers().iter();
    Ok(layers.map(|layer| layer.digest().to_string()).collect())
}

/// The values that differ, with the paths of their keys.
fn json(
    what: &str,
    published: &[u8],
    rebuilt: &[u8],
    ignored: &[&str],
) -> io::Result<Vec<Difference>> {
    let flat = |text: &[u8]| -> io::Result<BTreeMap<String, String>> {
        let mut value: Value = serde_json::from_slice(text).map_err(io::Error::other)?;
        if let Some(object) = value.as_object_mut() {
            object.retain(|key, _| !ignored.contains(&key.as_str()));
        }
        let mut leaves = BTreeMap::new();
        flatten(String::new(), &value, &mut leaves);
        Ok(leaves)
    };
    let (published, rebuilt) = (flat(published)?, flat(rebuilt)?);
    let mut keys: Vec<_> = published.keys().chain(rebuilt.keys()).collect();
    keys.sort();
    keys.dedup();
    let side = |side: &BTreeMap<String, String>, key| {
        side.get(key).cloned().unwrap_or_else(|| NOTHING.to_owned())
    };
    Ok(keys
        .into_iter()
        .filter(|key| published.get(*key) != rebuilt.get(*key))
        .map(|key| {
            Difference::new(
                format!("{what} {key}"),
                side(&published, key),
                side(&rebuilt, key),
            )
        })
        .collect())
}

fn flatten(path: String, value: &Value, leaves: &mut BTreeMap<String, String>) {
    let below = |key: &str| {
        if path.is_empty() {
            key.to_owned()
        } else {
            format!("{path}.{key}")
        }
    };
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                flatten(below(key), value, leaves);
            }
        }
        Value::Array(array) => {
            for (number, value) in array.iter().enumerate() {
                flatten(below(&number.to_string()), value, leaves);
            }
        }
        leaf => {
            leaves.insert(path, leaf.to_string());
        }
    }
}

/// Decompresses a layer to a tar archive.
fn decompress(mut layer: impl Read) -> io::Result<Vec<u8>> {
    let mut start = [0; 2];
    let mut read = 0;
    while read < start.len() {
        match layer.read(&mut start[read..])? {
            0 => break,
            more => read += more,
        }
    }
    let whole = start[..read].chain(layer);
    let mut tar = Vec::new();
    if start == [0x1f, 0x8b] {
        MultiGzDecoder::new(whole)
            .take(MAX_LAYER_SIZE + 1)
            .read_to_end(&mut tar)?;
    } else {
        whole.take(MAX_LAYER_SIZE + 1).read_to_end(&mut tar)?;
    }
    if tar.len() as u64 > MAX_LAYER_SIZE {
        return Err(io::Error::other("a layer unpacks to more than 1 GiB"));
    }
    Ok(tar)
}

/// An entry of a layer's tar archive.
struct Entry<'a> {
    attributes: Vec<(&'static str, String)>,
    content: &'a [u8],
}

/// The entries of a layer by path, and by number if several entries have the same path.
fn entries(tar: &[u8]) -> io::Result<BTreeMap<(PathBuf, usize), Entry<'_>>> {
    let mut found = BTreeMap::new();
    let mut archive = tar::Archive::new(tar);
    for entry in archive.entries()? {
        let entry = entry?;
        let header = entry.header();
        let link = entry.link_name()?.map(|link| link.display().to_string());
        let text =
            |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        let start = usize::try_from(entry.raw_file_position()).map_err(io::Error::other)?;
        let size = usize::try_from(entry.size()).map_err(io::Error::other)?;
        let content = start
            .checked_add(size)
            .and_then(|end| tar.get(start..end))
            .unwrap_or_default();
        let attributes = vec![
            ("type", format!("{:?}", header.entry_type())),
            ("mode", format!("{:04o}", header.mode()?)),
            ("owner", format!("{}:{}", header.uid()?, header.gid()?)),
            (
                "owner's name",
                format!(
                    "{}:{}",
                    text(header.username_bytes()),
                    text(header.groupname_bytes())
                ),
            ),
            ("time", header.mtime()?.to_string()),
            ("link", link.unwrap_or_default()),
            ("size", size.to_string()),
        ];
        let path = Path::new("/").join(entry.path()?);
        let mut number = 0;
        while found.contains_key(&(path.clone(), number)) {
            number += 1;
        }
        found.insert(
            (path, number),
            Entry {
                attributes,
                content,
            },
        );
    }
    Ok(found)
}

fn files(layer: &str, published: &[u8], rebuilt: &[u8]) -> io::Result<Vec<Difference>> {
    let (theirs, ours) = (entries(published)?, entries(rebuilt)?);
    let mut found = Vec::new();
    for key in theirs
        .keys()
        .chain(ours.keys().filter(|key| !theirs.contains_key(key)))
    {
        let place = format!("{layer} {}", key.0.display());
        match (theirs.get(key), ours.get(key)) {
            (Some(their), Some(our)) => {
                for ((name, their), (_, our)) in their.attributes.iter().zip(&our.attributes) {
                    if their != our {
                        found.push(Difference::new(format!("{place}: {name}"), their, our));
                    }
                }
                found.extend(content(&place, their.content, our.content));
            }
            (Some(_), None) => found.push(Difference::new(place, "present", NOTHING)),
            _ => found.push(Difference::new(place, NOTHING, "present")),
        }
    }
    if found.is_empty() {
        let (what, same) = if published == rebuilt {
            ("compressed differently", "the same content")
        } else {
            ("packed differently", "the same files")
        };
        found.push(Difference::new(layer, what, same));
    }
    if found.len() > MAX_LISTED {
        let more = found.len() - MAX_LISTED;
        found.truncate(MAX_LISTED);
        found.push(Difference::new(
            layer,
            format!("{more} more differences"),
            "",
        ));
    }
    Ok(found)
}

/// The first byte that differs.
fn content(place: &str, published: &[u8], rebuilt: &[u8]) -> Option<Difference> {
    if published == rebuilt {
        return None;
    }
    let offset = published
        .iter()
        .zip(rebuilt)
        .position(|(their, our)| their != our)
        .unwrap_or_else(|| published.len().min(rebuilt.len()));
    let side = |content: &[u8]| {
        content
            .get(offset)
            .map_or("end of file".to_owned(), |byte| format!("{byte:#04x}"))
    };
    Some(Difference::new(
        format!("{place}: content, first difference at offset {offset}"),
        side(published),
        side(rebuilt),
    ))
}
