//! What the engine leaves on the host: a link, firewall rules, control groups, each found by the name and addresses that
//! are this engine's alone; and IP forwarding, which all engines share.

use std::fmt::Write as _;
use std::fs;
use std::io::{Seek as _, Write as _};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256, Sha512};

use common::failure::{Failure, OrFail};
use common::provision::{command, find_program, output};

/// The name and address range of one engine's network.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Network {
    /// Its link is called this and `0`.
    pub(super) name: String,
    /// The second byte of `10.x.0.0/16`.
    subnet: u8,
}

impl Network {
    /// The network of the engine in `folder`: always the same name, and a range that no route of this host covers.
    pub(super) fn choose(folder: &Path) -> Self {
        let digest = Sha256::digest(folder.as_os_str().as_encoded_bytes());
        let taken = routes(&fs::read_to_string("/proc/net/route").unwrap_or_default());
        // Dagger's own engine has 10.87; the low ones are what offices and clouds use most.
        let start = digest[0];
        let free = (0..100_u8)
            .map(|step| 128 + (start.wrapping_add(step)) % 100)
            .find(|subnet| {
                let ours = u32::from(Ipv4Addr::new(10, *subnet, 0, 0));
                // Two ranges meet when they are the same under the wider of both masks. The default route meets all.
                !taken
                    .iter()
                    .any(|(net, mask)| *mask != 0 && (ours & mask & WIDTH) == (net & mask & WIDTH))
            });
        Self {
            // A link's name has 15 characters at most.
            name: format!("{PREFIX}{}", hex::encode(&digest[..3])),
            subnet: free.unwrap_or(128),
        }
    }

    pub(super) fn link(&self) -> String {
        format!("{}0", self.name)
    }

    pub(super) fn cidr(&self) -> String {
        format!("10.{}.0.0/16", self.subnet)
    }

    /// Notes that the host forwards nothing, before the engine makes it do so.
    pub(super) fn note_forwarding() -> Result<(), Failure> {
        if fs::read_to_string(FORWARDING).is_ok_and(|text| text.trim() == "0") {
            let note = forwarding_note();
            fs::write(&note, "").or_environment(format!("cannot write {}", note.display()))?;
        }
        Ok(())
    }

    /// Takes the control groups away that the dead containers have left, and says what there was.
    pub(super) async fn remove_cgroups(&self) -> Result<Vec<String>, Failure> {
        let mut removed = false;
        for root in cgroup_roots(&fs::read_to_string("/proc/self/mounts").unwrap_or_default()) {
            let own = root.join(&self.name);
            // The kernel takes a moment to let the last of the dead go, and refuses a group in which anybody lives.
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
                    "the control group {} does not go away",
                    own.display()
                )));
            }
        }
        let what = format!("control groups {}", self.name);
        Ok(if removed { vec![what] } else { Vec::new() })
    }

    /// Takes the link and the firewall rules away, and says what there was. `containers` are the identities of those that
    /// were connected, or about to be.
    pub(super) async fn remove(&self, containers: &[String]) -> Result<Vec<String>, Failure> {
        let mut removed = Vec::new();
        let link = self.link();
        let mut bridges = bridges().await?;
        if bridges.contains(&link) {
            let mut delete = command(need("ip")?);
            delete.args(["link", "delete", &link]);
            output(delete, "ip link delete").await?;
            bridges.retain(|bridge| *bridge != link);
            removed.push(format!("link {link}"));
        }
        if restore_forwarding(&bridges)? {
            removed.push("IP forwarding".to_owned());
        }
        let Some(iptables) = find_program("iptables") else {
            return Ok(removed);
        };
        let nat = self.nat(&rules(&iptables, "nat").await?, containers);
        let mut count = restore("nat", &nat).await?;
        let filter = self.filter(&rules(&iptables, "filter").await?);
        count += restore("filter", &filter).await?;
        // What remains of the plugin's own chains when nobody has rules in them.
        count += restore("filter", &empty_chains(&rules(&iptables, "filter").await?)).await?;
        if count > 0 {
            removed.push(format!("{count} firewall rules of {}", self.cidr()));
        }
        Ok(removed)
    }

    /// What takes this network's rules out of the table `nat`: the plugin writes the network's name into each. A chain of
    /// whoever died between making and filling it has no rule, but a name that follows from the container's.
    fn nat(&self, rules: &str, containers: &[String]) -> Vec<String> {
        let mark = format!(r#"name: \"{}\""#, self.name);
        let mut orders = Vec::new();
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
                orders.push(format!("-D {rule}"));
            }
            let chain = rule.split(' ').next().unwrap_or_default();
            let target = rule.rsplit(' ').next().unwrap_or_default();
            for name in [chain, target].map(str::to_owned) {
                if name.starts_with("CNI-") && !chains.contains(&name) {
                    chains.push(name);
                }
            }
        }
        orders.extend(chains.iter().map(|chain| format!("-F {chain}")));
        orders.extend(chains.iter().map(|chain| format!("-X {chain}")));
        orders
    }

    /// The chain of one container in the table `nat`, named as the [CNI plugins] name it.
    ///
    /// [CNI plugins]: https://pkg.go.dev/github.com/containernetworking/plugins/pkg/utils#FormatChainName
    fn chain(&self, container: &str) -> String {
        let digest = Sha512::digest(format!("{}{container}", self.name));
        format!("CNI-{}", hex::encode(&digest[..12]))
    }

    /// What takes this network's rules out of the table `filter`: one pair for each container's address.
    fn filter(&self, rules: &str) -> Vec<String> {
        let addresses = [" -s ", " -d "].map(|option| format!("{option}10.{}.", self.subnet));
        rules
            .lines()
            .filter(|rule| rule.starts_with("-A CNI-FORWARD "))
            .filter(|rule| addresses.iter().any(|address| rule.contains(address)))
            .filter_map(|rule| Some(format!("-D {}", rule.strip_prefix("-A ")?)))
            .collect()
    }
}

/// Whether this host forwards packets between its networks: the engine's bridge turns it on, and nobody off.
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
/// What the names of all engines' links begin with.
const PREFIX: &str = "labci";

/// A file that says, until the next start of the machine, that it did not forward before the first engine came.
fn forwarding_note() -> PathBuf {
    // Each network namespace has a setting of its own.
    let namespace = fs::read_link("/proc/self/ns/net").unwrap_or_default();
    let number: String = namespace
        .to_string_lossy()
        .chars()
        .filter(char::is_ascii_digit)
        .collect();
    PathBuf::from(format!("/run/infrastructure-lab-ci.no-forwarding.{number}"))
}

/// Turns forwarding off again where an engine has turned it on and nobody else needs it, and says whether it did.
fn restore_forwarding(bridges: &[String]) -> Result<bool, Failure> {
    let note = forwarding_note();
    // The last engine does it.
    if !note.exists() || bridges.iter().any(|name| name.starts_with(PREFIX)) {
        return Ok(false);
    }
    let cannot = "cannot turn IP forwarding off again";
    // With another bridge it is from now on the business of that one's owner.
    let nobodys = bridges.is_empty();
    if nobodys {
        fs::write(FORWARDING, "0").or_environment(cannot)?;
    }
    fs::remove_file(&note).or_environment(cannot)?;
    Ok(nobodys)
}

/// The names of this network namespace's bridges, ours and others'. `/sys` may be another namespace's.
async fn bridges() -> Result<Vec<String>, Failure> {
    let mut list = command(need("ip")?);
    list.args(["-oneline", "link", "show", "type", "bridge"]);
    Ok(names(&output(list, "ip link show").await?))
}

fn names(links: &str) -> Vec<String> {
    links
        .lines()
        .filter_map(|line| Some(line.split(": ").nth(1)?.to_owned()))
        .collect()
}

/// Where control groups are mounted: one place, or one for each controller.
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

/// The mask of this engine's range.
const WIDTH: u32 = 0xffff_0000;

/// The plugin's chains and the jumps to them, as far as they are there, when there is nothing else in them: other engines may
/// be using them.
fn empty_chains(rules: &str) -> Vec<String> {
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
        // The one jumps to the other: it has to be empty before that one can go.
        .chain(chains.clone().map(|chain| format!("-F {chain}")))
        .chain(chains.map(|chain| format!("-X {chain}")))
        .collect()
}

/// Whether the table of these rules has a chain of this name.
fn has_chain(rules: &str, chain: &str) -> bool {
    rules
        .lines()
        .any(|rule| rule.strip_prefix("-N ") == Some(chain))
}

/// The IPv4 routes of this host: network and mask.
fn routes(table: &str) -> Vec<(u32, u32)> {
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

async fn rules(iptables: &Path, table: &str) -> Result<String, Failure> {
    let mut list = command(iptables);
    list.args(["--wait", "10", "--table", table, "--list-rules"]);
    output(list, "iptables --list-rules").await
}

/// Gives orders to one table, all or none of them.
async fn restore(table: &str, orders: &[String]) -> Result<usize, Failure> {
    if orders.is_empty() {
        return Ok(0);
    }
    let mut text = format!("*{table}\n");
    for order in orders {
        let _ = writeln!(text, "{order}");
    }
    text.push_str("COMMIT\n");
    let cannot = "cannot write a temporary file";
    let mut file = tempfile::tempfile().or_environment(cannot)?;
    file.write_all(text.as_bytes()).or_environment(cannot)?;
    file.rewind().or_environment(cannot)?;
    let mut restore = command(need("iptables-restore")?);
    restore.args(["--noflush", "--wait", "10"]).stdin(file);
    output(restore, "iptables-restore").await?;
    Ok(orders
        .iter()
        .filter(|order| order.starts_with("-D"))
        .count())
}

fn need(program: &str) -> Result<PathBuf, Failure> {
    find_program(program)
        .ok_or_else(|| Failure::environment(format!("there is no {program} on this machine")))
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
    fn only_the_own_rules_go() {
        let nat = concat!(
            "-P POSTROUTING ACCEPT\n-N CNI-aaa\n-N CNI-bbb\n",
            "-A POSTROUTING -s 10.200.0.2/32 -m comment --comment \"name: \\\"labci123456\\\" id: \\\"x\\\"\" -j CNI-aaa\n",
            "-A POSTROUTING -s 10.87.0.2/32 -m comment --comment \"name: \\\"dagger\\\" id: \\\"y\\\"\" -j CNI-bbb\n",
            "-A CNI-aaa -d 10.200.0.0/16 -m comment --comment \"name: \\\"labci123456\\\" id: \\\"x\\\"\" -j ACCEPT\n",
            "-A CNI-bbb -d 10.87.0.0/16 -m comment --comment \"name: \\\"dagger\\\" id: \\\"y\\\"\" -j ACCEPT\n",
        );
        let orders = network().nat(nat, &[]);
        assert_eq!(orders.len(), 3);
        assert!(
            orders[0].starts_with("-D POSTROUTING -s 10.200.0.2/32 "),
            "{orders:?}"
        );
        assert_eq!(orders[1..], ["-F CNI-aaa", "-X CNI-aaa"]);

        let filter = "-A CNI-FORWARD -j CNI-ADMIN\n-A CNI-FORWARD -s 10.200.0.2/32 -j ACCEPT\n-A CNI-FORWARD -s 10.20.0.2/32 -j ACCEPT\n";
        assert_eq!(
            network().filter(filter),
            ["-D CNI-FORWARD -s 10.200.0.2/32 -j ACCEPT"]
        );
    }

    #[test]
    fn a_chain_that_nobody_came_to_fill_goes_when_its_container_was_ours() {
        // As the plugin of this network's own version names it.
        let ours = "CNI-36cf994ba79a7fa2b28a1e91";
        let network = Network {
            name: "labci3f782f".to_owned(),
            ..network()
        };
        let containers = ["6hywtsoes808uqghxo8fayy1a", "another"].map(str::to_owned);
        assert_eq!(
            network.nat(&format!("-N {ours}\n-N CNI-bbb\n"), &containers),
            [format!("-F {ours}"), format!("-X {ours}")]
        );
        assert!(network.nat("-N CNI-bbb\n", &containers).is_empty());
    }

    #[test]
    fn shared_chains_stay_while_somebody_uses_them() {
        let chains = "-N CNI-ADMIN\n-N CNI-FORWARD\n";
        let forward =
            "-A FORWARD -m comment --comment \"CNI firewall plugin rules\" -j CNI-FORWARD\n";
        let jump = format!("{chains}{forward}-A CNI-FORWARD -j CNI-ADMIN\n");
        assert_eq!(empty_chains(&jump).len(), 5);
        // Of a plugin that died while it made them.
        assert_eq!(
            empty_chains("-N CNI-FORWARD\n"),
            ["-F CNI-FORWARD", "-X CNI-FORWARD"]
        );
        assert_eq!(empty_chains(chains).len(), 4);
        assert!(empty_chains("-N THEIR-CNI-FORWARD\n").is_empty());
        assert_eq!(empty_chains(&format!("{chains}{forward}")).len(), 5);
        assert!(
            empty_chains(&format!("{jump}-A CNI-FORWARD -s 10.87.0.2/32 -j ACCEPT\n")).is_empty()
        );
        assert!(empty_chains(&format!("{jump}-A CNI-ADMIN -j DROP\n")).is_empty());
        assert!(empty_chains("").is_empty());
    }

    #[test]
    fn routes_are_read_in_the_order_of_the_network() {
        let table = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
                     eth0 00000000 010200C0 0003 0 0 0 00000000 0 0 0\ndagger0 0000570A 00000000 0001 0 0 0 0000FFFF 0 0 0\n";
        assert_eq!(routes(table), [(0, 0), (0x0a57_0000, 0xffff_0000)]);
    }

    #[test]
    fn links_are_read_by_name() {
        let links = "6: docker0: <BROADCAST> mtu 1500\\    link/ether 02:00\n7: labci1234560: <UP> mtu 1500\\    link\n";
        assert_eq!(names(links), ["docker0", "labci1234560"]);
        assert!(names("").is_empty());
    }

    #[test]
    fn control_groups_of_both_versions_are_found() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n/dev/sda1 / ext4 rw 0 0\n";
        assert_eq!(
            cgroup_roots(mounts),
            ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/unified"].map(PathBuf::from)
        );
    }

    #[test]
    fn the_name_fits_a_link() {
        let network = Network::choose(Path::new("/some/folder"));
        assert!(network.link().len() <= 15);
        assert_eq!(
            network.name,
            Network::choose(Path::new("/some/folder")).name
        );
        assert!((128..228).contains(&network.subnet));
    }
}
