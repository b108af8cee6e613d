// Throw-away machines with a real systemd as their first process, in systemd-nspawn inside a network namespace of the
// test's own. Each disk is an overlay on one image: nothing a machine does reaches the image or this machine. Never
// systemd in a bare unshare: its udev and its control groups would be this machine's.
import {type ChildProcess, execFile, spawn} from 'node:child_process';
import {hash} from 'node:crypto';
import {accessSync, constants, existsSync, readFileSync} from 'node:fs';
import {appendFile, cp, mkdir, mkdtemp, readFile, rm, rmdir, writeFile} from 'node:fs/promises';
import {join} from 'node:path';
import {promisify} from 'node:util';
import type {ExecutionContext} from 'ava';
import {until} from '../support/mesh.ts';
import {execute, type Namespace, type Output, toolPath} from '../support/netns.ts';

const run = promisify(execFile);
const root = join(import.meta.dirname, '..', '..');
/** Only a disk will do: an overlay cannot lie on an overlay. */
const directory = join(root, '.cache', 'booted');

const tools = ['systemd-nspawn', 'mmdebstrap', 'nsenter', 'ip', 'nft', 'setpriv', 'mount', 'dpkg-deb'];

/** The hierarchies in which systemd tracks units: that of v2, and on a hybrid machine the named one of v1. */
const cgroups = ['/sys/fs/cgroup/unified', '/sys/fs/cgroup/systemd', '/sys/fs/cgroup'].filter(path =>
	existsSync(join(path, 'cgroup.procs')),
);

let reason: Promise<string | undefined> | undefined;

/** Why no machine can be booted here, or undefined. */
export function missingForMachines(): Promise<string | undefined> {
	reason ??= findMissing();
	return reason;
}

async function findMissing(): Promise<string | undefined> {
	if (process.getuid?.() !== 0) return 'needs root';
	const missing = tools.filter(name => toolPath(name) === undefined);
	if (missing.length > 0) return `needs ${missing.join(', ')}`;
	try {
		if (cgroups.length === 0) throw new Error('there are no control groups');
		for (const path of cgroups) accessSync(path, constants.W_OK);
		await mkdir(directory, {recursive: true});
		const trial = await mkdtemp(join(directory, 'trial-'));
		try {
			for (const name of ['lower', 'upper', 'work', 'root']) await mkdir(join(trial, name));
			await mountOverlay(trial, join(trial, 'lower'));
			await run('umount', [join(trial, 'root')]);
		} finally {
			await rm(trial, {recursive: true, force: true});
		}
		return undefined;
	} catch (error) {
		return `cannot boot machines here: ${error instanceof Error ? error.message.trim() : String(error)}`;
	}
}

async function mountOverlay(disk: string, lower: string, written = disk): Promise<void> {
	const options = `lowerdir=${lower},upperdir=${written}/upper,workdir=${written}/work`;
	await run('mount', ['-t', 'overlay', 'overlay', '-o', options, join(disk, 'root')]);
}

/** Why no machine can have a disk that forgets, or undefined. */
export function missingForForgetfulDisks(): string | undefined {
	const missing = ['mkfs.ext4', 'losetup', 'perl'].filter(name => toolPath(name) === undefined);
	if (missing.length > 0) return `needs ${missing.join(', ')}`;
	return existsSync('/dev/loop-control') ? undefined : 'needs loop devices';
}

/** Of an ext4: from now on nothing is written any more, not even its journal (EXT4_IOC_SHUTDOWN, NOLOGFLUSH). */
const shutDown = 'open(F, "<", $ARGV[0]) or die $!; my $how = pack("L", 2); ioctl(F, 0x8004587D, $how) or die $!';

/** Code name of another distribution than this machine's, see `image`. */
const suite = process.env['ONRAMP_BOOTED_SUITE'];

/** Path of the image, made on the first call ever; another recipe makes another image. */
async function ensureImage(): Promise<string> {
	const recipe = join(import.meta.dirname, 'image');
	const path = join(directory, `${suite ?? 'own'}-${hash('sha256', readFileSync(recipe), 'hex').slice(0, 8)}`);
	if (!existsSync(path)) await run(recipe, [path, ...(suite ? [suite] : [])], {maxBuffer: 2 ** 26});
	return path;
}

let count = 0;

export interface MachineOptions {
	readonly name: string;
	readonly namespace: Namespace;
	/** Files of a NoCloud seed by name; without, cloud-init does not run. */
	readonly seed?: Readonly<Record<string, string>>;
	/** Lines of /etc/resolv.conf. */
	readonly resolvConf?: string;
	/** Files to be there before the first boot, by path inside: path outside. */
	readonly files?: Readonly<Record<string, string>>;
	/** A crash loses what was not synced, as a power cut does; without, it is the end of all processes and no more. */
	readonly isForgetful?: boolean;
}

export class Machine {
	readonly name: string;
	readonly #disk: string;
	readonly #image: string;
	/** Where an ext4 of its own is mounted that takes what the machine writes; the image is beside. */
	#volume: string | undefined;
	readonly #namespace: Namespace;
	readonly #unit: string;
	#nspawn: ChildProcess | undefined;
	#leader = 0;

	private constructor({name, namespace, isForgetful = false}: MachineOptions, disk: string, image: string) {
		this.name = name;
		this.#disk = disk;
		this.#image = image;
		this.#volume = isForgetful ? join(disk, 'volume') : undefined;
		this.#namespace = namespace;
		this.#unit = `onramp-test-${process.pid}-${count++}`;
	}

	/** Boots one; it is gone, disk included, when the test ends. */
	static async boot(t: ExecutionContext, options: MachineOptions): Promise<Machine> {
		const image = await ensureImage();
		const disk = await mkdtemp(join(directory, 'machine-'));
		const machine = new Machine(options, disk, image);
		t.teardown(() => machine.#destroy(t.passed ? undefined : text => t.log(text)));
		await mkdir(join(disk, 'root'));
		await machine.#makeVolume();
		const written = machine.#volume ?? disk;
		for (const name of ['upper/etc/cloud', 'work']) await mkdir(join(written, name), {recursive: true});
		await writeFile(join(written, 'upper/etc/hostname'), `${options.name}\n`);
		await writeFile(join(written, 'upper/etc/hosts'), `127.0.0.1 localhost ${options.name}\n`);
		await writeFile(join(written, 'upper/etc/resolv.conf'), options.resolvConf ?? '');
		if (options.seed) {
			const seed = join(written, 'upper/var/lib/cloud/seed/nocloud');
			await mkdir(seed, {recursive: true});
			for (const [name, text] of Object.entries(options.seed)) await writeFile(join(seed, name), text);
		} else await writeFile(join(written, 'upper/etc/cloud/cloud-init.disabled'), '');
		await mountOverlay(disk, image, written);
		for (const [to, from] of Object.entries(options.files ?? {})) await machine.copy(from, to);
		await machine.#start();
		return machine;
	}

	/** A path of the machine's as this machine sees it. */
	path(inside: string): string {
		return join(this.#disk, 'root', inside);
	}

	async copy(from: string, to: string): Promise<void> {
		await cp(from, this.path(to), {recursive: true, mode: constants.COPYFILE_FICLONE});
	}

	/** Runs a script under the machine's own systemd, and returns how it ended. */
	sh(script: string): Promise<Output> {
		const wrapped = ['systemd-run', '--wait', '--pipe', '--quiet', '--collect', '--', 'bash', '-c', script];
		return this.#enter(wrapped);
	}

	/** @throws when it fails */
	async must(script: string): Promise<string> {
		const {code, stdout, stderr} = await this.sh(script);
		if (code !== 0) throw new Error(`${this.name}: ${script}: exit code ${code}\n${stdout}${stderr}`);
		return stdout;
	}

	/** A property of a unit. */
	async show(unit: string, property: string): Promise<string> {
		const {stdout} = await this.#enter(['systemctl', 'show', '--value', `--property=${property}`, '--', unit]);
		return stdout.trim();
	}

	/** Powers off in order, and boots from the same disk. */
	async reboot(): Promise<void> {
		await this.#end('SIGRTMIN+4');
		await this.#start();
	}

	/**
	 * Pulls the plug, and boots from the same disk.
	 * @param againAfterMs - pulls it once more that long after power is back
	 */
	async crash(againAfterMs?: number): Promise<void> {
		await this.#cut();
		if (againAfterMs !== undefined) {
			await this.#powerOn();
			await new Promise(resolve => setTimeout(resolve, againAfterMs));
			await this.#cut();
		}
		await this.#start();
	}

	async #cut(): Promise<void> {
		if (this.#volume) await run('perl', ['-e', shutDown, this.#volume]);
		await this.#end('SIGKILL');
		if (!this.#volume) return;
		for (const path of [join(this.#disk, 'root'), this.#volume]) await untilUnmounted(path);
		// Other machines have the mount in name spaces of theirs, so the file system lives on: a copy of the disk is another.
		const copy = join(this.#disk, `volume-${count++}`);
		await run('cp', ['--sparse=always', `${this.#volume}.img`, `${copy}.img`]);
		await rm(`${this.#volume}.img`);
		this.#volume = copy;
		await this.#mountVolume();
		await mountOverlay(this.#disk, this.#image, copy);
	}

	async #makeVolume(): Promise<void> {
		if (!this.#volume) return;
		await run('truncate', ['-s', '2G', `${this.#volume}.img`]);
		await run(toolPath('mkfs.ext4')!, ['-q', '-F', `${this.#volume}.img`]);
		await this.#mountVolume();
	}

	async #mountVolume(): Promise<void> {
		await mkdir(this.#volume!);
		await run('mount', ['-o', 'loop', `${this.#volume}.img`, this.#volume!]);
	}

	#enter(command: readonly string[]): Promise<Output> {
		return execute('nsenter', ['-t', String(this.#leader), '-m', '-u', '-i', '-n', '-p', '-C', '--', ...command]);
	}

	async #start(): Promise<void> {
		await this.#powerOn();
		await until(`${this.name} to have booted`, async () => {
			const {stdout} = await this.#enter(['systemctl', 'is-system-running', '--wait']);
			return /^(running|degraded)$/m.test(stdout);
		});
	}

	async #powerOn(): Promise<void> {
		// One control group a machine: without it all would share the fixed name that nspawn uses, and fight over it.
		const groups = cgroups.map(path => join(path, this.#unit));
		for (const path of groups) await mkdir(path, {recursive: true});
		const console: string[] = [];
		const child = spawn(
			'bash',
			[
				'-c',
				`for c in ${groups.join(' ')}; do echo $$ > "$c/cgroup.procs"; done; exec setpriv --pdeathsig KILL -- "$@"`,
				'bash',
				...['systemd-nspawn', '-q', '-b', '-D', join(this.#disk, 'root'), `--machine=${this.#unit}`],
				...['--register=no', '--keep-unit', '--link-journal=no', '--resolv-conf=off', '--timezone=off'],
				...['--console=passive', '--capability=CAP_NET_ADMIN'],
				`--network-namespace-path=/run/netns/${this.#namespace.name}`,
			],
			{
				detached: true,
				stdio: ['ignore', 'pipe', 'pipe'],
				env: {
					PATH: '/usr/sbin:/usr/bin:/sbin:/bin',
					// With v1 a systemd in a container is never told that the group of a unit is empty.
					SYSTEMD_NSPAWN_UNIFIED_HIERARCHY: '1',
					SYSTEMD_NSPAWN_API_VFS_WRITABLE: 'network',
				},
			},
		);
		for (const stream of [child.stdout, child.stderr])
			stream.on('data', (chunk: Buffer) => {
				console.push(chunk.toString());
				void appendFile(join(this.#disk, 'console.log'), chunk).catch(() => {});
			});
		this.#nspawn = child;
		this.#leader = await until(`the first process of ${this.name}`, async () => {
			if (child.exitCode !== null) throw new Error(`${this.name} did not boot:\n${console.join('')}`);
			const children = await readFile(`/proc/${child.pid}/task/${child.pid}/children`, 'utf8').catch(() => '');
			const pid = Number(children.split(' ')[0]);
			const name = pid > 0 ? await readFile(`/proc/${pid}/comm`, 'utf8').catch(() => '') : '';
			return name === 'systemd\n' ? pid : undefined;
		});
	}

	async #end(signal: 'SIGRTMIN+4' | 'SIGKILL'): Promise<void> {
		const child = this.#nspawn;
		if (!child) return;
		if (this.#leader > 0) await execute('kill', ['-s', signal.slice(3), String(this.#leader)]);
		await until(`${this.name} to end`, () => child.exitCode !== null || child.signalCode !== null, 60_000).catch(() =>
			child.kill('SIGKILL'),
		);
		this.#nspawn = undefined;
		this.#leader = 0;
		for (const path of cgroups) {
			const group = join(path, this.#unit);
			await execute('find', [group, '-depth', '-type', 'd', '-exec', 'rmdir', '{}', '+']);
		}
		await rmdir(`/run/systemd/nspawn/propagate/${this.#unit}`).catch(() => {}); // Made by some releases only.
	}

	async #destroy(tell: ((text: string) => void) | undefined): Promise<void> {
		if (tell && this.#leader > 0) {
			const {stdout} = await this.#enter(['journalctl', '-b', '--no-pager', '-n', '60', '-o', 'short-monotonic']);
			tell(`${this.name}:\n${stdout}`);
		}
		await this.#end('SIGKILL');
		await execute('umount', [join(this.#disk, 'root')]);
		if (this.#volume) await untilUnmounted(this.#volume);
		await rm(this.#disk, {recursive: true, force: true});
	}
}

/** Processes that were killed let go of what they had open a moment later. */
async function untilUnmounted(path: string): Promise<void> {
	await until(`${path} to be unmounted`, async () => (await run('umount', [path])) && true);
}
