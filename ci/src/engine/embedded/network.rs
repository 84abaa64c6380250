//! The engine's changes to the host's network: a link, firewall rules and control groups, which are identified by a name and
//! an address range of this engine alone, and IP forwarding, which all engines share.

use std::fmt::Write as _;
use std::fs;
use std::io::{Seek as _, Write as _};
use std::net::Ipv4Addr;
use std::ops::Range;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256, Sha512};

use common::failure::{Failure, OrFail};
use common::progress::Progress;
use common::provision::{ALTERNATIVES, command, find_program, lock, output};

/// The name and the address range of an engine's network.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Network {
    /// The link has this name followed by `0`.
    pub(super) name: String,
    /// The second byte of `10.x.0.0/16`.
    subnet: u8,
}

impl Network {
    /// Creates the network of the engine in `folder`, which must not run. Its address range is one that no route of this host covers.
    /// The file `record` is written before the link exists, so that the network can be removed if this process is killed.
    pub(super) async fn create(
        folder: &Path,
        record: &Path,
        progress: &dyn Progress,
    ) -> Result<Self, Failure> {
        let file = Path::new("/run/infrastructure-lab-ci.networks.lock");
        let _lock = lock(file, progress, "the networks of embedded engines").await?;
        let digest = Sha256::digest(folder.as_os_str().as_encoded_bytes());
        let name = name_from(&digest);
        let link = link_of(&name);
        // The record of this link is lost, for example with a cache directory that was removed.
        if list_bridges().await?.contains(&link) {
            ip(&["link", "delete", &link]).await?;
        }
        let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
        let subnet = free_subnet(digest[0], &parse_routes(&routes))?;
        let network = Self { name, subnet };
        let cannot = "cannot record the embedded engine's network";
        let json = serde_json::to_vec(&network).or_environment(cannot)?;
        fs::write(record, json).or_environment(cannot)?;
        network.create_link().await?;
        // Only now, because an engine that stops removes this record if no other engine has a link.
        Self::record_forwarding()?;
        Ok(network)
    }

    /// Creates the link, which the bridge plugin then uses. Its route reserves the address range before the first container starts.
    async fn create_link(&self) -> Result<(), Failure> {
        let link = self.link();
        // A bridge without a hardware address of its own has that of one of its ports, so it would change as containers start and end.
        let digest = Sha256::digest(&self.name);
        let bytes: Vec<String> = digest[..5]
            .iter()
            .map(|byte| format!(":{byte:02x}"))
            .collect();
        let address = format!("02{}", bytes.concat());
        let gateway = format!("10.{}.0.1/16", self.subnet);
        ip(&["link", "add", &link, "address", &address, "type", "bridge"]).await?;
        ip(&["address", "add", &gateway, "dev", &link]).await?;
        ip(&["link", "set", &link, "up"]).await?;
        Ok(())
    }

    fn link(&self) -> String {
        link_of(&self.name)
    }

    pub(super) fn cidr(&self) -> String {
        format!("10.{}.0.0/16", self.subnet)
    }

    /// Records that IP forwarding is off, before the engine turns it on.
    fn record_forwarding() -> Result<(), Failure> {
        if fs::read_to_string(FORWARDING).is_ok_and(|text| text.trim() == "0") {
            let record = forwarding_record();
            fs::write(&record, "").or_environment(format!("cannot write {}", record.display()))?;
        }
        Ok(())
    }

    /// Removes the control groups of dead containers; returns one line if there were any.
    pub(super) async fn remove_cgroups(&self) -> Result<Vec<String>, Failure> {
        let mut removed = false;
        for root in cgroup_roots(&fs::read_to_string("/proc/self/mounts").unwrap_or_default()) {
            let own = root.join(&self.name);
            // The kernel refuses to remove a group with live processes, and needs a moment to release dead ones.
            for _ in 0..20 {
                if !own.exists() {
                    break;
                }
                removed = true;
                for group in walkdir::WalkDir::new(&own).contents_first(true) {
                    if let Ok(group) = group
                        && group.file_type().is_dir()
                    {
                        let _ = fs::remove_dir(group.path());
                    }
                }
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            if own.exists() {
                return Err(Failure::environment(format!(
                    "cannot remove the control group {}",
                    own.display()
                )));
            }
        }
        let what = format!("control groups {}", self.name);
        Ok(if removed { vec![what] } else { Vec::new() })
    }

    /// Removes the link and the firewall rules; returns one line for each kind. `containers` are the IDs of the containers that
    /// were connected to the network or about to be.
    pub(super) async fn remove(&self, containers: &[String]) -> Result<Vec<String>, Failure> {
        let mut removed = Vec::new();
        let link = self.link();
        let mut bridges = list_bridges().await?;
        if bridges.contains(&link) {
            ip(&["link", "delete", &link]).await?;
            bridges.retain(|bridge| *bridge != link);
            removed.push(format!("link {link}"));
        }
        if restore_forwarding(&bridges)? {
            removed.push("IP forwarding".to_owned());
        }
        let Some(iptables) = find_program("iptables") else {
            return Ok(removed);
        };
        let nat = self.nat_commands(&list_rules(&iptables, "nat").await?, containers);
        let mut count = apply("nat", &nat).await?;
        let filter = self.filter_commands(&list_rules(&iptables, "filter").await?);
        count += apply("filter", &filter).await?;
        // The plugin's own chains, if no other engine has rules in them.
        let chains = chain_commands(&list_rules(&iptables, "filter").await?);
        count += apply("filter", &chains).await?;
        if count > 0 {
            removed.push(format!("{count} firewall rules of {}", self.cidr()));
        }
        Ok(removed)
    }

    /// The commands that remove this network's rules from the table `nat`. The plugin writes the network's name into each rule.
    /// If it was killed before it filled a chain, the chain is recognized by its name, which derives from the container's ID.
    fn nat_commands(&self, rules: &str, containers: &[String]) -> Vec<String> {
        let mark = format!(r#"name: \"{}\""#, self.name);
        let mut commands = Vec::new();
        let mut chains: Vec<String> = containers
            .iter()
            .map(|container| self.chain(container))
            .filter(|chain| has_chain(rules, chain))
            .collect();
        for rule in rules.lines().filter(|rule| rule.contains(&mark)) {
            let Some(rule) = rule.strip_prefix("-A ") else {
                continue;
            };
            if rule.starts_with("POSTROUTING ") {
                commands.push(format!("-D {rule}"));
            }
            let chain = rule.split(' ').next().unwrap_or_default();
            let target = rule.rsplit(' ').next().unwrap_or_default();
            for name in [chain, target].map(str::to_owned) {
                if name.starts_with("CNI-") && !chains.contains(&name) {
                    chains.push(name);
                }
            }
        }
        commands.extend(chains.iter().map(|chain| format!("-F {chain}")));
        commands.extend(chains.iter().map(|chain| format!("-X {chain}")));
        commands
    }

    /// The name that the [CNI plugins] give to a container's chain in the table `nat`.
    ///
    /// [CNI plugins]: https://pkg.go.dev/github.com/containernetworking/plugins/pkg/utils#FormatChainName
    fn chain(&self, container: &str) -> String {
        let digest = Sha512::digest(format!("{}{container}", self.name));
        format!("CNI-{}", hex::encode(&digest[..12]))
    }

    /// The commands that remove this network's rules from the table `filter`: a pair for each container's address.
    fn filter_commands(&self, rules: &str) -> Vec<String> {
        let addresses = [" -s ", " -d "].map(|option| format!("{option}10.{}.", self.subnet));
        rules
            .lines()
            .filter(|rule| rule.starts_with("-A CNI-FORWARD "))
            .filter(|rule| addresses.iter().any(|address| rule.contains(address)))
            .filter_map(|rule| Some(format!("-D {}", rule.strip_prefix("-A ")?)))
            .collect()
    }
}

/// Whether this host forwards packets between its networks. The engine's bridge turns it on and never off.
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
/// The prefix of the link names of all engines.
const PREFIX: &str = "labci";

/// The name of the network of the engine whose folder has this digest.
fn name_from(digest: &[u8]) -> String {
    // The name of a link has at most 15 characters.
    format!("{PREFIX}{}", hex::encode(&digest[..3]))
}

/// The name of the link of the network `name`.
fn link_of(name: &str) -> String {
    format!("{name}0")
}

/// The second bytes of the ranges. Dagger's own engine uses 10.87, and offices and clouds mostly use the lower ranges.
const SUBNETS: Range<u8> = 128..228;

/// The first subnet from `preferred` on that no route covers.
fn free_subnet(preferred: u8, taken: &[(u32, u32)]) -> Result<u8, Failure> {
    let Range { start, end } = SUBNETS;
    let count = end - start;
    (0..count)
        .map(|step| start + (preferred % count + step) % count)
        .find(|subnet| {
            let ours = u32::from(Ipv4Addr::new(10, *subnet, 0, 0));
            // Two ranges overlap if they are equal under the wider mask. The default route overlaps all and is skipped.
            !taken
                .iter()
                .any(|(net, mask)| *mask != 0 && (ours & mask & MASK) == (net & mask & MASK))
        })
        .ok_or_else(|| {
            let (first, last) = (start, end - 1);
            Failure::environment(format!(
                "the embedded engine needs an address range, but all from 10.{first}.0.0/16 to 10.{last}.0.0/16 have routes"
            ))
            .hint(format!("`ip route` lists the routes. {ALTERNATIVES}"))
        })
}

/// A file that records, until the next boot, that IP forwarding was off before the first engine started.
fn forwarding_record() -> PathBuf {
    // Each network namespace has its own setting.
    let namespace = fs::read_link("/proc/self/ns/net").unwrap_or_default();
    let number: String = namespace
        .to_string_lossy()
        .chars()
        .filter(char::is_ascii_digit)
        .collect();
    PathBuf::from(format!("/run/infrastructure-lab-ci.no-forwarding.{number}"))
}

/// Turns IP forwarding off if an engine has turned it on and no other bridge needs it; returns whether it did.
fn restore_forwarding(bridges: &[String]) -> Result<bool, Failure> {
    let record = forwarding_record();
    // The last engine turns it off.
    if !record.exists() || bridges.iter().any(|name| name.starts_with(PREFIX)) {
        return Ok(false);
    }
    let cannot = "cannot turn off IP forwarding";
    // With another bridge, its owner is responsible from now on.
    let unused = bridges.is_empty();
    if unused {
        fs::write(FORWARDING, "0").or_environment(cannot)?;
    }
    fs::remove_file(&record).or_environment(cannot)?;
    Ok(unused)
}

/// Lists all bridges of this network namespace. `/sys` may show another namespace.
async fn list_bridges() -> Result<Vec<String>, Failure> {
    let list = ["-oneline", "link", "show", "type", "bridge"];
    Ok(parse_names(&ip(&list).await?))
}

async fn ip(arguments: &[&str]) -> Result<String, Failure> {
    let mut ip = command(require_program("ip")?);
    ip.args(arguments);
    output(ip, &format!("ip {}", arguments.join(" "))).await
}

fn parse_names(links: &str) -> Vec<String> {
    links
        .lines()
        .filter_map(|line| Some(line.split(": ").nth(1)?.to_owned()))
        .collect()
}

/// The mount points of control groups: one, or one for each controller.
fn cgroup_roots(mounts: &str) -> Vec<PathBuf> {
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let place = fields.nth(1)?;
            let kind = fields.next()?;
            matches!(kind, "cgroup" | "cgroup2").then(|| PathBuf::from(place))
        })
        .collect()
}

/// The network mask of this engine's range.
const MASK: u32 = 0xffff_0000;

/// The commands that remove the plugin's own chains and the jumps to them. None if the chains have other rules, because other
/// engines may use them.
fn chain_commands(rules: &str) -> Vec<String> {
    let of = |prefix: &'static str| rules.lines().filter(move |rule| rule.starts_with(prefix));
    let only_jumps = of("-A CNI-FORWARD ").all(|rule| rule.ends_with("-j CNI-ADMIN"));
    if !only_jumps || of("-A CNI-ADMIN ").next().is_some() {
        return Vec::new();
    }
    let chains = ["CNI-FORWARD", "CNI-ADMIN"]
        .into_iter()
        .filter(|chain| has_chain(rules, chain));
    of("-A FORWARD ")
        .filter(|rule| rule.ends_with("-j CNI-FORWARD"))
        .filter_map(|rule| Some(format!("-D {}", rule.strip_prefix("-A ")?)))
        // One chain jumps to the other, and a chain with references cannot be deleted.
        .chain(chains.clone().map(|chain| format!("-F {chain}")))
        .chain(chains.map(|chain| format!("-X {chain}")))
        .collect()
}

/// Whether the table with these rules has the chain.
fn has_chain(rules: &str, chain: &str) -> bool {
    rules
        .lines()
        .any(|rule| rule.strip_prefix("-N ") == Some(chain))
}

/// Parses `/proc/net/route` into pairs of network and mask.
fn parse_routes(table: &str) -> Vec<(u32, u32)> {
    let number = |hex: &str| u32::from_str_radix(hex, 16).map(u32::swap_bytes).ok();
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            Some((number(fields.get(1)?)?, number(fields.get(7)?)?))
        })
        .collect()
}

async fn list_rules(iptables: &Path, table: &str) -> Result<String, Failure> {
    let mut list = command(iptables);
    list.args(["--wait", "10", "--table", table, "--list-rules"]);
    output(list, "iptables --list-rules").await
}

/// Applies commands to a table, either all or none; returns the number of deleted rules.
async fn apply(table: &str, commands: &[String]) -> Result<usize, Failure> {
    if commands.is_empty() {
        return Ok(0);
    }
    let mut text = format!("*{table}\n");
    for command in commands {
        let _ = writeln!(text, "{command}");
    }
    text.push_str("COMMIT\n");
    let cannot = "cannot write a temporary file";
    let mut file = tempfile::tempfile().or_environment(cannot)?;
    file.write_all(text.as_bytes()).or_environment(cannot)?;
    file.rewind().or_environment(cannot)?;
    let mut restore = command(require_program("iptables-restore")?);
    restore.args(["--noflush", "--wait", "10"]).stdin(file);
    output(restore, "iptables-restore").await?;
    Ok(commands
        .iter()
        .filter(|command| command.starts_with("-D"))
        .count())
}

pub(super) fn require_program(program: &str) -> Result<PathBuf, Failure> {
    find_program(program).ok_or_else(|| Failure::environment(format!("{program} is not installed")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> Network {
        Network {
            name: "labci123456".to_owned(),
            subnet: 200,
        }
    }

    #[test]
    fn removes_only_its_own_rules() {
        let nat = concat!(
            "-P POSTROUTING ACCEPT\n-N CNI-aaa\n-N CNI-bbb\n",
            "-A POSTROUTING -s 10.200.0.2/32 -m comment --comment \"name: \\\"labci123456\\\" id: \\\"x\\\"\" -j CNI-aaa\n",
            "-A POSTROUTING -s 10.87.0.2/32 -m comment --comment \"name: \\\"dagger\\\" id: \\\"y\\\"\" -j CNI-bbb\n",
            "-A CNI-aaa -d 10.200.0.0/16 -m comment --comment \"name: \\\"labci123456\\\" id: \\\"x\\\"\" -j ACCEPT\n",
            "-A CNI-bbb -d 10.87.0.0/16 -m comment --comment \"name: \\\"dagger\\\" id: \\\"y\\\"\" -j ACCEPT\n",
        );
        let commands = network().nat_commands(nat, &[]);
        assert_eq!(commands.len(), 3);
        assert!(
            commands[0].starts_with("-D POSTROUTING -s 10.200.0.2/32 "),
            "{commands:?}"
        );
        assert_eq!(commands[1..], ["-F CNI-aaa", "-X CNI-aaa"]);

        let filter = "-A CNI-FORWARD -j CNI-ADMIN\n-A CNI-FORWARD -s 10.200.0.2/32 -j ACCEPT\n-A CNI-FORWARD -s 10.20.0.2/32 -j ACCEPT\n";
        assert_eq!(
            network().filter_commands(filter),
            ["-D CNI-FORWARD -s 10.200.0.2/32 -j ACCEPT"]
        );
    }

    #[test]
    fn removes_the_empty_chain_of_its_own_container() {
        // The name that the pinned version of the plugin generates.
        let ours = "CNI-36cf994ba79a7fa2b28a1e91";
        let network = Network {
            name: "labci3f782f".to_owned(),
            ..network()
        };
        let containers = ["6hywtsoes808uqghxo8fayy1a", "another"].map(str::to_owned);
        assert_eq!(
            network.nat_commands(&format!("-N {ours}\n-N CNI-bbb\n"), &containers),
            [format!("-F {ours}"), format!("-X {ours}")]
        );
        assert!(network.nat_commands("-N CNI-bbb\n", &containers).is_empty());
    }

    #[test]
    fn keeps_shared_chains_that_are_in_use() {
        let chains = "-N CNI-ADMIN\n-N CNI-FORWARD\n";
        let forward =
            "-A FORWARD -m comment --comment \"CNI firewall plugin rules\" -j CNI-FORWARD\n";
        let jump = format!("{chains}{forward}-A CNI-FORWARD -j CNI-ADMIN\n");
        assert_eq!(chain_commands(&jump).len(), 5);
        // From a plugin that was killed while it created them.
        assert_eq!(
            chain_commands("-N CNI-FORWARD\n"),
            ["-F CNI-FORWARD", "-X CNI-FORWARD"]
        );
        assert_eq!(chain_commands(chains).len(), 4);
        assert!(chain_commands("-N THEIR-CNI-FORWARD\n").is_empty());
        assert_eq!(chain_commands(&format!("{chains}{forward}")).len(), 5);
        assert!(
            chain_commands(&format!("{jump}-A CNI-FORWARD -s 10.87.0.2/32 -j ACCEPT\n")).is_empty()
        );
        assert!(chain_commands(&format!("{jump}-A CNI-ADMIN -j DROP\n")).is_empty());
        assert!(chain_commands("").is_empty());
    }

    #[test]
    fn parses_routes_in_network_byte_order() {
        let table = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
                     eth0 00000000 010200C0 0003 0 0 0 00000000 0 0 0\ndagger0 0000570A 00000000 0001 0 0 0 0000FFFF 0 0 0\n";
        assert_eq!(parse_routes(table), [(0, 0), (0x0a57_0000, 0xffff_0000)]);
    }

    #[test]
    fn parses_link_names() {
        let links = "6: docker0: <BROADCAST> mtu 1500\\    link/ether 02:00\n7: labci1234560: <UP> mtu 1500\\    link\n";
        assert_eq!(parse_names(links), ["docker0", "labci1234560"]);
        assert!(parse_names("").is_empty());
    }

    #[test]
    fn finds_control_groups_of_both_versions() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n/dev/sda1 / ext4 rw 0 0\n";
        assert_eq!(
            cgroup_roots(mounts),
            ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/unified"].map(PathBuf::from)
        );
    }

    #[test]
    fn subnet_is_the_first_free_one_from_the_preferred_one_on() {
        let route = |subnet, mask| (u32::from(Ipv4Addr::new(10, subnet, 0, 0)), mask);
        let free = |preferred, taken: &[_]| free_subnet(preferred, taken).ok();
        let default = (0, 0);
        assert_eq!(free(99, &[default]), Some(227));
        assert_eq!(free(100, &[default]), Some(128));
        assert_eq!(free(255, &[route(183, MASK)]), Some(184));
        let inside = (u32::from(Ipv4Addr::new(10, 227, 8, 0)), 0xffff_ff00);
        assert_eq!(free(99, &[inside, route(128, MASK)]), Some(129));
        assert_eq!(free(0, &[route(128, 0xffc0_0000)]), Some(192));
        assert_eq!(free(0, &[route(0, 0xff00_0000)]), None);
        for preferred in 0..=u8::MAX {
            assert!(SUBNETS.contains(&free(preferred, &[default]).unwrap()));
        }
    }

    #[test]
    fn link_name_is_short_enough() {
        let name = || name_from(&Sha256::digest("/some/folder"));
        assert!(link_of(&name()).len() <= 15);
        assert_eq!(name(), name());
    }
}
