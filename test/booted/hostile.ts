// What a local user whom nobody has let in may try on a machine in the mesh, and the proof that each try is a good one.
import type {ExecutionContext} from 'ava';
import type {Machine} from './machine.ts';

interface Try {
	readonly what: string;
	readonly command: string;
	/** Who may: what fails for him, too, is a wrong try, and a refusal says nothing. */
	readonly by: 'root' | 'onramp';
	/** In his answer. */
	readonly shows?: RegExp;
	/** Done by him in its place, where the command itself would end what this test needs. */
	readonly proof?: string;
}

const refused = /permission denied|operation not permitted|access denied|authentication required/i;

/** Every try succeeds for who may, and is refused to uid 65534 for the want of a right and nothing else. */
export async function assertRefused(t: ExecutionContext, machine: Machine, pids: readonly string[]): Promise<void> {
	const all = [...tries, ...pids.flatMap(triesAt)];
	const allowed = await runAll(
		machine,
		all.map(({by, command, proof = command}) => ({user: by, command: proof})),
	);
	const denied = await runAll(
		machine,
		all.map(({command}) => ({user: '65534', command})),
	);
	for (const [i, {what, by, shows = /^/}] of all.entries()) {
		t.is(allowed[i]!.code, 0, `${what}, by ${by}: ${allowed[i]!.said}`);
		t.regex(allowed[i]!.said, shows, `${what}, by ${by}`);
		t.not(denied[i]!.code, 0, `${what}: ${denied[i]!.said}`);
		t.regex(denied[i]!.said, refused, what);
	}
}

/** How each of them ended, and what it said, one after the other. */
async function runAll(
	machine: Machine,
	list: readonly {readonly user: string; readonly command: string}[],
): Promise<{readonly code: number; readonly said: string}[]> {
	const script = list.map(
		({user, command}) =>
			`said=$(setpriv --reuid ${user} --regid ${user} --clear-groups -- bash -o pipefail -c ${quote(command)} 2>&1 | tr -d '\\0'); printf '%s\\0%s\\0' $? "$said"`,
	);
	const words = (await machine.must(['set -o pipefail', ...script].join('\n'))).split('\0');
	return list.map((_, i) => ({code: Number(words[2 * i]), said: words[2 * i + 1] ?? ''}));
}

const quote = (text: string): string => `'${text.replaceAll("'", "'\\''")}'`;

const tries: readonly Try[] = [
	{
		what: 'certificate and key over SDS',
		// One message of gRPC as Envoy sends it, and the end of the stream.
		command: `printf ${octal(framed(sdsRequest('default')))} | curl -sv -m 5 --http2-prior-knowledge --unix-socket /run/onramp/xds.sock -H 'content-type: application/grpc' -H 'te: trailers' --data-binary @- -o - http://x/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets`,
		by: 'onramp',
		shows: /BEGIN CERTIFICATE[\s\S]*BEGIN PRIVATE KEY/,
	},
	ask('control.sock', '/status', /"ready": true/),
	ask('admin.sock', '/server_info', /"state": "LIVE"/),
	...['/run/onramp/', '/var/lib/onramp/', '/etc/onramp/bundle/'].map(
		(path): Try => ({what: `list ${path}`, command: `ls ${path}`, by: 'onramp'}),
	),
	{what: 'state of capture', command: 'ls /run/onramp-capture/', by: 'root'},
	...[
		'/var/lib/onramp/identity/current/key.pem',
		'/var/lib/onramp/relay/seal.key',
		'/var/lib/onramp/envoy/start-a',
		'/etc/onramp/bundle/istio-token',
	].map((path): Try => ({what: `read ${path}`, command: `cat ${path}`, by: 'onramp', shows: /./})),
	// It is what Envoy's unit runs.
	write('/var/lib/onramp/envoy/start-a', 'onramp'),
	...['/etc/onramp/onramp.yaml', '/etc/onramp/bundle/istio-token', '/usr/bin/onramp', '/usr/lib/onramp/node'].map(
		path => write(path, 'root'),
	),
	{what: 'rules', command: 'nft list ruleset', by: 'root', shows: /table ip onramp/},
	{what: 'a unit', command: 'systemctl start onramp', by: 'root'},
	{what: 'the end of a unit', command: 'systemctl stop onramp', by: 'root', proof: 'systemctl start onramp'},
	{what: 'status', command: 'onramp status', by: 'root', shows: /READY/},
	{what: 'health', command: 'onramp unready', by: 'root', proof: 'onramp unready && onramp ready'},
	{what: 'leaving', command: 'onramp leave', by: 'root', proof: 'onramp leave --help'},
];

function ask(socket: string, path: string, shows: RegExp): Try {
	const command = `curl -sv -m 5 --unix-socket /run/onramp/${socket} http://x${path}`;
	return {what: socket, command, by: 'onramp', shows};
}

/** Opened, and left as it is. A program that runs can only be tried for the right. */
function write(path: string, by: Try['by']): Try {
	return {what: `write ${path}`, command: `: >>${path}`, by, proof: `test -w ${path}`};
}

function triesAt(pid: string): Try[] {
	const at = `/proc/${pid}`;
	const seize = `c = ctypes.CDLL(None, use_errno=True); sys.exit(os.strerror(ctypes.get_errno()) if c.ptrace(0x4206, ${pid}, 0, 0) else 0)`;
	const commands: readonly string[] = [
		...['environ', 'maps'].map(name => `head -c1 ${at}/${name}`),
		...['cwd', 'root', 'exe'].map(name => `readlink -v ${at}/${name}`),
		...['fd', 'root'].map(name => `ls ${at}/${name}/`),
		`python3 -c 'open("${at}/mem", "rb")'`,
		// PTRACE_SEIZE, which leaves it running; it is let go when this ends.
		`python3 -c 'import ctypes, os, sys; ${seize}'`,
		`kill -0 ${pid}`,
	];
	return commands.map(command => ({what: command, command, by: 'root'}));
}

/** A field of a message with bytes, by its number. */
function field(number: number, bytes: Buffer): Buffer {
	return Buffer.concat([Buffer.from([(number << 3) | 2, bytes.length]), bytes]);
}

/** A DiscoveryRequest with a node. */
function sdsRequest(resource: string): Buffer {
	const type = 'type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret';
	return Buffer.concat([
		field(2, field(1, Buffer.from('nobody'))),
		field(3, Buffer.from(resource)),
		field(4, Buffer.from(type)),
	]);
}

function framed(message: Buffer): Buffer {
	return Buffer.concat([Buffer.from([0, 0, 0, 0, message.length]), message]);
}

/** For printf. */
function octal(bytes: Buffer): string {
	return `'${[...bytes].map(byte => `\\${byte.toString(8).padStart(3, '0')}`).join('')}'`;
}

const commands = ['drain', 'dns-lookup', 'leave', 'proxy-replace', 'ready', 'retry', 'rotate', 'unready'];
const commandsOfEnvoy = [
	'config_dump',
	'certs',
	'clusters',
	'server_info',
	'quitquitquit',
	'logging',
	'drain_listeners',
];

/** On TCP there is health and metrics for everybody, and nothing else. */
export async function assertPublicIsHarmless(t: ExecutionContext, machine: Machine): Promise<void> {
	const answers = async (words: string, urls: readonly string[]): Promise<string[]> => {
		const list = urls.map(url => `-o /dev/null ${url}`).join(' ');
		return (await machine.must(`${words} -s -m 20 -w '%{http_code} %{url_effective}\\n' ${list}`)).trim().split('\n');
	};
	const each = (code: number, urls: readonly string[]) => urls.map(url => `${code} ${url}`);
	const anybody = 'setpriv --reuid 65534 --regid 65534 --clear-groups -- curl';
	const ofAgent = commands.map(name => `http://x/${name}`);
	t.deepEqual(
		await answers('curl --unix-socket /run/onramp/control.sock', ofAgent),
		each(405, ofAgent),
		'all of these are commands, for which GET is wrong',
	);
	const open = ['', 'healthz/ready', 'livez', 'readyz', 'readyz/proxy', 'metrics', 'stats/prometheus'].map(
		path => `http://127.0.0.1:15020/${path}`,
	);
	t.deepEqual(await answers(anybody, open), each(200, open));
	const closed = [15_020, 15_021, 15_090].flatMap(port =>
		[...commands, 'status', 'gates', ...commandsOfEnvoy].map(name => `http://127.0.0.1:${port}/${name}`),
	);
	for (const method of ['GET', 'POST'])
		t.deepEqual(await answers(`${anybody} -X ${method}`, closed), each(404, closed), method);
}

/** Whatever everybody may read of processes and units holds nothing of the files that nobody else may. */
export async function assertNoSecretShows(t: ExecutionContext, machine: Machine): Promise<void> {
	const token = (await machine.must('cat /etc/onramp/bundle/istio-token')).trim();
	const key = await machine.must('cat /var/lib/onramp/identity/current/key.pem');
	const secrets = [token, ...key.split('\n').filter(line => /^[\w+/=]+$/.test(line))];
	t.is(secrets.length, 4);
	const shown = await machine.must(
		`setpriv --reuid 65534 --regid 65534 --clear-groups -- bash -c 'cat /proc/[0-9]*/cmdline 2>/dev/null | tr "\\0" " "; systemctl show "onramp*"' seen-of-itself`,
	);
	for (const expected of ['seen-of-itself', '/usr/lib/onramp/envoy -c', 'Id=onramp-agent.service'])
		t.true(shown.includes(expected), expected);
	for (const secret of secrets) t.false(shown.includes(secret), 'a secret in a command line or a property');
}

/** A socket in the abstract namespace has no file, so no mode that keeps anybody away. */
export async function assertNoAbstractSocket(t: ExecutionContext, machine: Machine): Promise<void> {
	const script = `import socket
own = socket.socket(socket.AF_UNIX)
own.bind("\\0one-of-these")
print([line.split()[-1] for line in open("/proc/net/unix") if " @" in line])`;
	t.is((await machine.must(`python3 -c ${quote(script)}`)).trim(), "['@one-of-these']");
}
