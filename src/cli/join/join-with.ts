import {hash} from 'node:crypto';
import {statSync} from 'node:fs';
import {dirname, join, resolve} from 'node:path';
import {runAgent} from '../../agent.ts';
import {diskReader, type FileReader, type LoadedConfig} from '../../config/index.ts';
import {AgentError, systemCode} from '../../errors.ts';
import {createLogger} from '../../log.ts';
import {fetchStatus, type StatusReport, sendCommand} from '../../status/index.ts';
import type {Flags} from '../index.ts';
import {loadFrom} from '../load.ts';
import {type FileChange, install, isSameToken, planInstall} from './bundle-files.ts';
import {checkBundle} from './check.ts';
import {type KeptFlags, keepFlags, planKeptFlags, refuseWhatServiceIgnores} from './kept-flags.ts';
import {planJoin, type RunningAgent} from './plan.ts';
import {type ServiceManager, systemd} from './service.ts';
import {untilReady} from './until-ready.ts';

const say = (text: string): boolean => process.stdout.write(`${text}\n`);

export interface JoinOptions {
	readonly isInstallOnly: boolean;
	readonly waitMs: number;
	readonly signal: AbortSignal;
}

/** Looks at everything, decides, and only then changes something. */
export async function joinWith(source: string, target: string, flags: Flags, options: JoinOptions): Promise<number> {
	const {isInstallOnly, waitMs, signal} = options;
	const {loaded: wanted, warnings} = await checkBundle(source, flags, isSameToken(source, target));
	// Of a bundle that lies at its place already, only the modes are looked at.
	const changes = await planInstall(source, target);
	const configPath = String(flags['config'] ?? process.env['ONRAMP_CONFIG'] ?? '/etc/onramp/onramp.yaml');
	const kept = planKeptFlags(flags, resolve(configPath), target, diskReader);
	const {controlSocketPath} = wanted.config.status;
	const report = await askAgent(controlSocketPath);
	const agent = report && (await describeAgent(report, systemd, target, future(changes, kept)));
	const plan = planJoin({target, agent, hasService: await systemd.hasService(), isInstallOnly});
	if (plan.kind === 'start' || plan.kind === 'restart') {
		const files = overlay(diskReader, future(changes, kept), target);
		const ofService = await loadFrom({}, {files, env: {}});
		refuseWhatServiceIgnores(await loadFrom({...flags, bundle: target}, {files}), ofService);
	}

	// A service may leave that to a unit of its own.
	const isCapturing = wanted.config.capture.isByAgent && plan.kind === 'foreground';
	if (isCapturing) (await import('../../capture/keeper.ts')).refuseWithoutNetAdmin();

	say(`bundle ${source}: good`);
	for (const warning of warnings) say(`  warning: ${warning}`);
	await install(target, changes);
	await keepFlags(kept);
	tellChanges(changes, kept, target);
	tellOpenToken(source, target);

	if (isCapturing)
		say('traffic capture: the agent puts rules in once Envoy answers; what works now must work then, or they go back');

	const wake = async (): Promise<boolean> => {
		// A waiting agent looks again at once; one that is ready is left alone.
		if (report && !report.ready) await sendCommand(controlSocketPath, 'retry');
		return untilReady({...waiting, formerPid: undefined});
	};
	const waiting = {controlSocketPath, waitMs, say, failure: systemd.failure, signal};
	const ready = (isReady: boolean): number => (isReady || waitMs === 0 ? 0 : 1);
	switch (plan.kind) {
		case 'keep':
			say('installed; nothing was started');
			return 0;
		case 'wake': {
			const hasChanged = changes.length > 0 || kept.content !== undefined;
			say(`the agent (pid ${agent!.pid}) is running${hasChanged ? ' and needs no restart' : '; nothing to do'}`);
			return ready(await wake());
		}
		case 'restart':
			say(
				`restarting ${plan.unit}${plan.because.length > 0 ? `, since only a start reads ${plan.because.join(', ')}` : ''}`,
			);
			await systemd.restart(plan.unit);
			return ready((await untilReady({...waiting, formerPid: agent!.pid})) && (await tellCapture(systemd, waitMs)));
		case 'start':
			if (await systemd.enable()) say('onramp.service: enabled, it starts at boot from now on');
			say('starting onramp.service');
			await systemd.restart();
			return ready((await untilReady({...waiting, formerPid: undefined})) && (await tellCapture(systemd, waitMs)));
		case 'foreground':
			return runInForeground(await loadFrom({...flags, bundle: target}), {waitMs, signal});
	}
}

/** Ready is the agent; the machine's own traffic is only in the mesh with the rules. */
async function tellCapture(services: ServiceManager, waitMs: number): Promise<boolean> {
	const state = await services.capture(waitMs);
	if (state === 'active') say('traffic capture: on');
	if (state === 'activating') say('traffic capture: not on yet; see systemctl status onramp-capture');
	if (state === 'failed') {
		say('traffic capture: the rules could not be put in, or were taken back; all traffic goes past Envoy');
		say('  → journalctl -u onramp-capture -n 20; once it is mended: systemctl restart onramp-capture');
	}
	return state !== 'failed' && state !== 'activating';
}

async function runInForeground(
	loaded: LoadedConfig,
	{waitMs, signal}: Pick<JoinOptions, 'waitMs' | 'signal'>,
): Promise<number> {
	say('no service is installed here: running in the foreground, Ctrl-C leaves the mesh');
	const {controlSocketPath} = loaded.config.status;
	const ended = new AbortController();
	const watched = untilReady({
		controlSocketPath,
		waitMs,
		formerPid: undefined,
		say,
		failure: async () => undefined,
		signal: AbortSignal.any([signal, ended.signal]),
	});
	try {
		await runAgent(loaded, createLogger(loaded.config.log), signal);
	} finally {
		ended.abort();
		await watched;
	}
	return 0;
}

/** What nobody answers for is not running; anything else is a reason to stop. */
async function askAgent(controlSocketPath: string): Promise<StatusReport | undefined> {
	try {
		return await fetchStatus(controlSocketPath);
	} catch (error) {
		const code = error instanceof AgentError ? systemCode(error.cause) : undefined;
		if (code === 'ENOENT' || code === 'ECONNREFUSED') return undefined;
		throw error;
	}
}

/** Content by path, as it will be; undefined is no file. */
type Future = ReadonlyMap<string, Uint8Array | undefined>;

function future(changes: readonly FileChange[], kept: KeptFlags): Future {
	const files = new Map<string, Uint8Array | undefined>();
	for (const {path, content} of changes) if (content !== 'same') files.set(path, content);
	if (kept.content !== undefined) files.set(kept.path, Buffer.from(kept.content));
	return files;
}

async function describeAgent(
	{pid, parts}: StatusReport,
	services: ServiceManager,
	target: string,
	files: Future,
): Promise<RunningAgent> {
	const {files: read = []} = (parts['configuration'] ?? {}) as Partial<Pick<LoadedConfig, 'files'>>;
	const bundle = read.find(({path}) => path.endsWith('/cluster.env'))?.path;
	// An onramp.yaml that somebody has edited since is not what joining is about.
	const ours = read.filter(({path}) => files.has(path) || dirname(path) === target);
	const outdated = ours.filter(({path, sha256}) => digestOf(path, files) !== sha256);
	return {
		pid,
		unit: await services.unitOf(pid),
		bundle: bundle === undefined ? target : dirname(bundle),
		outdated: outdated.map(({path}) => path),
	};
}

function digestOf(path: string, files: Future): string | null {
	const bytes = files.has(path) ? files.get(path) : diskReader.read(path, 2 ** 20);
	return bytes ? hash('sha256', bytes, 'hex') : null;
}

/** The disk as it will be. */
function overlay(disk: FileReader, files: Future, target: string): FileReader {
	const isNew = (path: string): boolean => files.get(path) !== undefined;
	return {
		...disk,
		read: (path, maxBytes) => (files.has(path) ? files.get(path) : disk.read(path, maxBytes)),
		kind: path => {
			if (isNew(path)) return 'file';
			return path === target ? 'directory' : disk.kind(path);
		},
	};
}

function tellChanges(changes: readonly FileChange[], kept: KeptFlags, target: string): void {
	const named = (wanted: (content: FileChange['content']) => boolean): string =>
		changes
			.filter(({content}) => wanted(content))
			.map(({path}) => path.slice(target.length + 1))
			.join(', ');
	const lines = [
		[named(content => content instanceof Buffer), `written to ${target}`],
		[named(content => content === 'same'), `made unreadable for others in ${target}`],
		[named(content => content === undefined), `removed from ${target}`],
		[kept.changed.join(', '), `kept in ${kept.path}`],
	] as const;
	const told = lines.filter(([names]) => names !== '');
	for (const [names, what] of told) say(`${names}: ${what}`);
	if (told.length === 0) say(`nothing has changed: ${target} has this bundle already`);
	if (kept.inherited.length > 0 && kept.content !== undefined)
		say(`  of an earlier join, still in ${kept.path}: ${kept.inherited.join(', ')}`);
}

/** istioctl writes its files readable for all, and people copy them as they are. */
function tellOpenToken(source: string, target: string): void {
	const path = join(source, 'istio-token');
	if (source === target) return;
	try {
		if ((statSync(path).mode & 0o004) !== 0)
			say(`  warning: all users of this machine may read ${path}; remove it once you have joined`);
	} catch (error) {
		if (systemCode(error) !== 'ENOENT') throw error;
	}
}
