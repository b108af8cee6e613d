import {type Setting, settings} from './settings.ts';

const intro = `<!-- Made by scripts/generate-config-docs.ts from src/config/settings.ts; edit that. -->
# Configuration

Every setting can be given as a flag, as an environment variable, or in \`/etc/onramp/onramp.yaml\`. What nobody has set
comes from the bundle that \`istioctl x workload entry configure\` wrote, then from the machine, then from the default.
The first of these that has a value decides:

1. flags (\`--log-level debug\`, \`--notify false\`)
2. variables \`ONRAMP_*\`; an empty one counts as not set
3. Istio's own agent variables in the process (\`TRUST_DOMAIN\`, \`CA_ADDR\`, \`ISTIO_META_*\`, …)
4. \`onramp.yaml\`, then \`join.yaml\` beside it, where \`onramp join\` keeps the flags it was given
5. the bundle: \`cluster.env\`, then \`proxyMetadata\`, then the other fields of \`mesh.yaml\` (\`PROXY_CONFIG\` before it)
6. the machine: host name, addresses
7. the default

\`onramp config print\` shows each value with its origin. A key or an \`ONRAMP_*\` variable that does not exist is an error,
and all errors are told at once, with exit code 78. A token is never given as a value, only as the path of its file, or as a program that prints it.

Values: durations are \`500ms\`, \`10s\`, \`1h30m\`; sizes \`64MiB\`; lists are separated by commas, or lists in YAML; pairs are
\`a=b,c=d\`, or maps in YAML. Relative paths start at the working directory, in the file at its own directory, in Istio's
files at \`/\`.

The bundle is the directory of \`bundle\`, else \`/etc/onramp/bundle\`, else the places of the istio-sidecar package:
\`/var/lib/istio/envoy/cluster.env\`, \`/etc/istio/config/mesh\`, \`/etc/certs/root-cert.pem\`,
\`/var/run/secrets/tokens/istio-token\`. A token that systemd hands over (\`$CREDENTIALS_DIRECTORY/istio-token\`) counts before
that of either, as long as it can be used, unless \`control-plane.token-path\` is set. \`cluster.env\` is read as a shell would read it, but nothing is run or expanded.
`;

/** docs/configuration.md, whole. */
export function renderConfigDocs(): string {
	const sectionOf = ({key}: Setting): string => (key.includes('.') ? key.split('.')[0]! : 'general');
	const sections = [...new Set(settings.map(sectionOf))];
	return [
		intro,
		...sections.map(name =>
			renderSection(
				name,
				settings.filter(each => sectionOf(each) === name),
			),
		),
	].join('\n');
}

function renderSection(name: string, rows: readonly Setting[]): string {
	const head =
		'| key in the file | flag, variable | value | default | what it says | also said by |\n| --- | --- | --- | --- | --- | --- |\n';
	return `## ${name}\n\n${head}${rows.map(renderRow).join('')}`;
}

function renderRow({
	key,
	flag,
	env,
	type,
	choices,
	description,
	default: fallback,
	istio,
	mesh,
	isFileAllowed,
}: Setting): string {
	const also = [...new Set(istio.map(each => each.name)), ...(mesh ? [`mesh.yaml ${mesh.path}`] : [])];
	const cells = [
		isFileAllowed ? `\`${key}\`` : '',
		`\`--${flag}\` \`${env}\``,
		choices ? choices.map(each => `\`${each}\``).join(' ') : type,
		fallback ? `\`${fallback}\`` : '',
		description,
		also.map(each => `\`${each}\``).join(' '),
	];
	return `| ${cells.map(cell => cell.replaceAll('|', '\\|')).join(' | ')} |\n`;
}
