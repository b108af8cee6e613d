// Two machines with the packages, a control plane, and an application on each that knows nothing of meshes.
import {execFile} from 'node:child_process';
import {hash} from 'node:crypto';
import {existsSync, readdirSync, readFileSync, statSync} from 'node:fs';
import {chmod, mkdir, mkdtemp, rename, rm, writeFile} from 'node:fs/promises';
import {join} from 'node:path';
import {setTimeout as sleep} from 'node:timers/promises';
import {promisify} from 'node:util';
import type {ExecutionContext} from 'ava';
import {buildAgent} from '../support/agent.ts';
import {type Control, type Echo, startControlPlane} from '../support/captured-mesh.ts';
import type {LoadResult} from '../support/load.ts';
import {until} from '../support/mesh.ts';
import {address, addVm, makeWorld, type Namespace, type Peer} from '../support/netns.ts';
import {Machine, type MachineOptions, missingForMachines} from './machine.ts';

const run = promisify(execFile);
const root = join(import.meta.dirname, '..', '..');

/** A test that boots machines; skipped with the reason where that cannot be. */
export async function skippedWithoutMachines(t: ExecutionContext): Promise<boolean> {
	const reason = await missingForMachines();
	if (reason === undefined) return false;
	t.log(`skipped: ${reason}`);
	t.pass();
	return true;
}

/** Addresses of the services, which no machine has: only Envoy knows where they are. */
export const vips = {a: '240.240.0.11', b: '240.240.0.12'} as const;

export interface Packages {
	readonly directory: string;
	/** File name of a package. */
	of(name: 'onramp' | 'onramp-envoy', format?: 'deb' | 'rpm'): string;
}

/** What packages are made of, besides the programs that are fetched by hash. */
const sources = [
	'dist/onramp.pack',
	'dist/onramp.cjs',
	'packaging',
	'scripts/package.ts',
	'scripts/packages',
	'CHANGELOG.md',
];

function digestOf(path: string): string {
	if (!statSync(path).isDirectory()) return hash('sha256', readFileSync(path), 'hex');
	return hash(
		'sha256',
		readdirSync(path)
			.toSorted()
			.map(name => name + digestOf(join(path, name)))
			.join(),
		'hex',
	);
}

export interface PackagesOptions {
	/** Other than the tree's makes an upgrade. */
	readonly version?: string;
	readonly format?: 'deb' | 'rpm';
	readonly names?: string;
	/** A line more in the settings that they ship. */
	readonly setting?: string;
}

/** Packages of what is in the tree, hardly compressed; made once, as all of these tests need them. */
export async function buildPackages({
	version = '',
	format = 'deb',
	names = 'onramp,onramp-envoy',
	setting = '',
}: PackagesOptions = {}): Promise<Packages> {
	await buildAgent();
	const key = hash(
		'sha256',
		[...sources.map(path => digestOf(join(root, path))), version, format, names, setting].join(),
		'hex',
	);
	const cache = join(root, '.cache', 'booted');
	const directory = join(cache, `packages-${key.slice(0, 12)}`);
	if (!existsSync(directory)) {
		await mkdir(cache, {recursive: true});
		// Of an earlier state of the tree.
		for (const name of readdirSync(cache).filter(each => each.startsWith('packages-')))
			if (Date.now() - statSync(join(cache, name)).mtimeMs > 3_600_000) await rm(join(cache, name), {recursive: true});
		const work = await mkdtemp(join(cache, 'packages-new-'));
		const words = ['--fast', '--format', format, '--package', names, '--out', work];
		if (version) words.push('--version', version);
		if (setting) {
			const path = join(work, 'onramp.yaml');
			await writeFile(path, `${readFileSync(join(root, 'packaging/onramp.yaml'), 'utf8')}${setting}\n`);
			words.push('--config', path);
		}
		await run(process.execPath, ['scripts/package.ts', ...words], {cwd: root});
		await rename(work, directory).catch(() => rm(work, {recursive: true})); // Another process was faster.
	}
	return {
		directory,
		of: (name, wanted = 'deb') => {
			const found = readdirSync(directory).find(
				file => file.endsWith(`.${wanted}`) && new RegExp(`^${name}[_-]\\d`).test(file),
			);
			if (!found) throw new Error(`no ${wanted} of ${name} was made`);
			return found;
		},
	};
}

export interface Vm {
	readonly machine: Machine;
	readonly app: Peer;
	readonly bundle: string;
}

export interface BootedWorld {
	readonly control: Control;
	readonly far: Namespace;
	readonly directory: string;
	/** Boots a machine of a group, whose application listens before it; nothing is installed yet. */
	boot(group: 'a' | 'b', options?: Partial<MachineOptions>): Promise<Vm>;
	bundle(group: 'a' | 'b'): Promise<string>;
}

/** @param graceSeconds - how long the control plane keeps the entry of a machine that is away; istiod's own is 10 s */
export async function makeBootedWorld(t: ExecutionContext, graceSeconds = 10): Promise<BootedWorld> {
	const world = await makeWorld(t, {ipv6: false});
	await chmod(world.directory, 0o755);
	const second = await addVm(t, world);
	const control = await startControlPlane(world, {a: {vip: vips.a}, b: {vip: vips.b}}, graceSeconds);
	const namespaceOf = {a: world.vm, b: second};
	const bundle = async (group: 'a' | 'b'): Promise<string> => {
		const directory = join(world.directory, `bundle-${group}`);
		const request = {group, namespace: 'mesh', ingressAddress: address.far.ip, isDnsCaptured: false};
		await control('writeBundle', directory, request);
		return directory;
	};
	return {
		control,
		far: world.far,
		directory: world.directory,
		bundle,
		boot: async (group, options = {}) => {
			const namespace = namespaceOf[group];
			const app = await namespace.peer();
			await app.send('serveHttp', {port: 8080, name: group});
			const machine = await Machine.boot(t, {name: group, namespace, ...options});
			return {machine, app, bundle: await bundle(group)};
		},
	};
}

/** Installs the packages; returns what was said. */
export async function install({machine}: Pick<Vm, 'machine'>, packages: Packages): Promise<string> {
	const files = (['onramp-envoy', 'onramp'] as const).map(name => packages.of(name));
	for (const file of files) await machine.copy(join(packages.directory, file), `/root/${file}`);
	return machine.must(`dpkg --force-unsafe-io -i ${files.map(file => `/root/${file}`).join(' ')} && rm /root/*.deb`);
}

/** What `onramp cloud-config` prints. */
export async function userData(bundle: string, ...words: readonly string[]): Promise<string> {
	const {stdout} = await run(process.execPath, [await buildAgent(), 'cloud-config', '--bundle', bundle, ...words]);
	return stdout;
}

/** What a machine has to be given so that it joins at its first boot, the packages lying on its disk. */
export async function seedFor(
	bundle: string,
	packages: Packages,
): Promise<Required<Pick<MachineOptions, 'seed' | 'files'>>> {
	const files = (['onramp-envoy', 'onramp'] as const).map(name => packages.of(name));
	const words = ['--package', files.map(file => `/root/${file}`).join(','), '--proxy-concurrency', '1'];
	return {
		seed: {
			'user-data': await userData(bundle, ...words, '--proxy-termination-drain', '2s'),
			'meta-data': 'instance-id: i-1\n',
		},
		files: Object.fromEntries(files.map(file => [`/root/${file}`, join(packages.directory, file)])),
	};
}

/** As an admin does it, but for a stop that callers would notice and tests need not wait for. */
export async function joinMesh({machine, bundle}: Vm): Promise<string> {
	await machine.copy(bundle, '/root/bundle');
	return machine.must('onramp join /root/bundle --wait 60s --proxy-termination-drain 2s');
}

export async function untilActive({machine}: Vm, unit: string): Promise<void> {
	await until(`${unit} of ${machine.name}`, async () => (await machine.show(unit, 'ActiveState')) === 'active', 60_000);
}

/** Waits until the application of one is answered by that of the other. */
export function untilAnswered(from: Vm, to: 'a' | 'b'): Promise<Echo> {
	return until(
		`an answer of ${to}`,
		async () => {
			const seen = await from.app.send<Echo>('get', {url: `http://${vips[to]}/`, withinMs: 3000});
			return seen.app ? seen : undefined;
		},
		30_000,
	);
}

/** What an installation may leave behind: rules, users, units, files that are not in the image, processes; a line each. */
export async function lookAround({machine}: Pick<Vm, 'machine'>): Promise<string[]> {
	// What dpkg, rpm, systemd and logins write of their own accord.
	const foreign = ['/run/systemd', '/run/user', '/run/log', '/var/log', '/var/cache', '/var/lib/dpkg', '/var/lib/rpm']
		.concat('/var/lib/systemd')
		.map(path => `${path}/*`)
		.concat('/var/lib/rpm', '/var/tmp/systemd-private-*', '/run/agetty.reload');
	const script = [
		'nft list ruleset',
		'ip rule; ip -6 rule; ip route show table all; ip -6 route show table all',
		// Only what is there: a table that is asked for comes to be.
		...['ip', 'ip6'].map(
			family =>
				`if grep -qs . /proc/net/${family}_tables_names; then ${family}tables-legacy-save | sed '/^#/d; s/\\[[0-9:]*\\]//'; fi`,
		),
		'cut -d: -f1 /etc/passwd /etc/group',
		'systemctl list-units --all --plain --no-legend "onramp*" | cut -d" " -f1',
		`find /etc /usr /var /run -xdev \\( ${foreign.map(path => `-path '${path}'`).join(' -o ')} \\) -prune -o -print | grep -v '/etc/\\(passwd\\|group\\|shadow\\|gshadow\\)-$' | sort`,
		// Not the shell of this very script.
		'ps -eo user:20,args | grep -E "^(onramp|[^ ]+ +/usr/(lib|bin)/onramp)" || true',
	];
	return (await machine.must(script.join('; echo --; '))).split('\n');
}

/** What there was at one of two looks only. */
export function differenceOf(before: readonly string[], now: readonly string[]): {more: string[]; less: string[]} {
	return {more: now.filter(line => !before.includes(line)), less: before.filter(line => !now.includes(line))};
}

const perSecond = 200;
/** A load that is over sooner proves nothing. */
const shortestLoadMs = 3000;

/** 200 requests a second each way between two machines while something happens, on a connection each; none may fail. */
export function underLoad(
	t: ExecutionContext,
	{a, b}: Readonly<Record<'a' | 'b', Vm>>,
	act: () => Promise<void>,
): Promise<void> {
	return underLoads(
		t,
		[
			{from: a, host: vips.b, port: 80},
			{from: b, host: vips.a, port: 80},
		],
		act,
	);
}

interface Way {
	readonly from: Vm;
	readonly host: string;
	readonly port: number;
}

/** The same to whom one likes. */
export async function underLoads(t: ExecutionContext, ways: readonly Way[], act: () => Promise<void>): Promise<void> {
	for (const {from, host, port} of ways) await from.app.send('startLoad', {host, port, perSecond});
	const enough = sleep(shortestLoadMs);
	try {
		await act();
		await enough;
	} finally {
		for (const {from, host} of ways) {
			const result = await from.app.send<LoadResult>('stopLoad');
			const {sent, failed, elapsedMs, mostInFlight, longestGapMs} = result;
			const way = `${from.machine.name} to ${host}`;
			t.is(failed, 0, `${way}: ${failed} of ${sent}, first: ${result.firstFailure}`);
			t.true(
				elapsedMs >= shortestLoadMs && sent >= (0.8 * perSecond * elapsedMs) / 1000,
				`${way}: ${sent} are too few`,
			);
			t.log(
				`${way}: ${sent} requests in ${(elapsedMs / 1000).toFixed(1)} s, ${failed} failed; at most ${mostInFlight} at once, ${longestGapMs} ms without an answer`,
			);
		}
	}
}
