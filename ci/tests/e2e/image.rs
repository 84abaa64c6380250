//! Reads the image in the report directory of a run.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use ci::image::archive;
use serde_json::Value;

/// An image from its archive.
pub struct Image {
    pub manifest: Value,
    pub config: Value,
    /// The unparsed configuration.
    pub config_bytes: Vec<u8>,
    /// The decompressed layers, each a tar archive.
    pub layers: Vec<Vec<u8>>,
}

impl Image {
    /// Reads the archive in this report directory.
    pub fn read(reports: &Path) -> Self {
        let archive = reports.join("image.tar");
        let blob = |digest: &Value| {
            let path = archive::blob_path(digest.as_str().unwrap());
            archive::read_entry(&archive, &path).unwrap()
        };
        let json = |digest: &Value| serde_json::from_slice::<Value>(&blob(digest)).unwrap();
        let manifest = json(&archive::read_digest(&archive).unwrap().into());
        let layers = manifest["layers"].as_array().unwrap().iter();
        Self {
            layers: layers
                .map(|layer| decompress(&blob(&layer["digest"])))
                .collect(),
            config: json(&manifest["config"]["digest"]),
            config_bytes: blob(&manifest["config"]["digest"]),
            manifest,
        }
    }

    /// The only layer; panics if there are more.
    #[track_caller]
    pub fn layer(&self) -> &[u8] {
        let [layer] = &self.layers[..] else {
            panic!("{} layers", self.layers.len())
        };
        layer
    }

    /// Mode and content of each entry of the top layer, which `ci` has added, by path.
    pub fn entries(&self) -> BTreeMap<String, (u32, Vec<u8>)> {
        let mut entries = BTreeMap::new();
        for entry in tar::Archive::new(&self.layers.last().unwrap()[..])
            .entries()
            .unwrap()
        {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            let mode = entry.header().mode().unwrap();
            let path = entry.path().unwrap().display().to_string();
            entries.insert(path, (mode, content));
        }
        entries
    }
}

/// Decompresses a gzip blob.
pub fn decompress(blob: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    flate2::read::GzDecoder::new(blob)
        .read_to_end(&mut content)
        .unwrap();
    content
}
