import {stringify} from 'yaml';
import {AgentError} from '../../errors.ts';

export interface CloudConfigInput {
	/** Content of the bundle's files, by name. */
	readonly files: Readonly<Record<string, string>>;
	/** Names for a repository, URLs, absolute paths. */
	readonly packages: readonly string[];
	/** Words after `onramp join DIRECTORY`. */
	readonly joinFlags: readonly string[];
}

/** In memory, so that of all this only what cloud-init itself keeps reaches a disk. */
const directory = '/run/onramp-join';

/** User-data for cloud-init. The token is in it as it is, on one line, so that it can be scrubbed. Pure. */
export function renderCloudConfig({files, packages, joinFlags}: CloudConfigInput): string {
	const isFile = (name: string): boolean => /^(https?:\/|\/)/.test(name);
	for (const name of packages)
		if (!isFile(name) && !/^[a-z0-9][a-z0-9+.=-]*$/.test(name))
			throw new AgentError('cli.usage', `cloud-config: "${name}" is no package, URL or absolute path`, {
				hint: '--package onramp,onramp-envoy, or --package https://HOST/onramp.deb,/root/onramp-envoy.deb',
			});
	const fromRepository = packages.filter(name => !isFile(name));
	const script = renderScript(packages.filter(isFile), joinFlags);
	const config = {
		write_files: [
			...Object.entries(files).map(([name, content]) => ({
				path: `${directory}/${name}`,
				permissions: '0600',
				content: name === 'istio-token' ? content.trim() : content,
			})),
			{path: `${directory}/join.sh`, permissions: '0700', content: script},
		],
		...(fromRepository.length === 0 ? {} : {package_update: true, packages: fromRepository}),
		runcmd: [['sh', `${directory}/join.sh`]],
	};
	return [
		'#cloud-config',
		'# Made by "onramp cloud-config". It holds a token: a credential until that expires.',
		stringify(config, {lineWidth: 0}),
	].join('\n');
}

/**
 * Joins, and then scrubs the token from all that cloud-init keeps. It is replaced by as many other characters: what
 * cloud-init has pickled stays readable, so that the next boot knows the instance.
 */
function renderScript(files: readonly string[], joinFlags: readonly string[]): string {
	return `# Runs once, by cloud-init, and ends with the directory it is in.
set -u
cd ${directory}
scrub() {
	umask 077
	{
		printf 's/'
		tr -d '\\n' <istio-token | sed 's/[.]/[.]/g'
		printf '/'
		tr -d '\\n' <istio-token | tr -c '\\n' x
		printf '/g\\n'
	} >scrub.sed
	for file in /var/lib/cloud/instances/*/* /var/lib/cloud/instances/*/*/* /var/lib/cloud/seed/*/* /run/cloud-init/*; do
		if [ -f "$file" ] && grep -q -F -f istio-token "$file"; then LC_ALL=C sed -i -f scrub.sed "$file"; fi
	done
	cd /
	rm -rf ${directory}
}
trap scrub EXIT
fail() {
	echo "onramp: $1" >&2
	exit 1
}
install_files() {
	case $1 in
	*.rpm)
		if command -v dnf >/dev/null; then dnf install -y -q "$@"; else rpm -U "$@"; fi
		;;
	*)
		export DEBIAN_FRONTEND=noninteractive
		if command -v apt-get >/dev/null; then apt-get install -y -q --no-install-recommends "$@"; else dpkg -i "$@"; fi
		;;
	esac
}
if ! grep -q '[^x]' istio-token; then
	cp /etc/onramp/bundle/istio-token . || fail 'the token of this user-data was scrubbed by an earlier run, and this machine has none'
fi
${renderDownloads(files)}onramp join ${[directory, ...joinFlags].map(quote).join(' ')} || fail 'the machine is not in the mesh yet; see: onramp status'
`;
}

function renderDownloads(files: readonly string[]): string {
	if (files.length === 0) return '';
	const lines = files.map((file, i) => {
		if (file.startsWith('/')) return `set -- "$@" ${quote(file)}`;
		// The suffix says what kind of package it is.
		const target = `package-${i}${/\.rpm(?:$|\?)/.test(file) ? '.rpm' : '.deb'}`;
		return `curl -fsSL --retry 5 -o ${target} ${quote(file)} || fail ${quote(`cannot download ${file}`)}
set -- "$@" "$PWD/${target}"`;
	});
	return `set --\n${lines.join('\n')}\ninstall_files "$@" || fail 'the packages cannot be installed'\n`;
}

const quote = (word: string): string => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);
