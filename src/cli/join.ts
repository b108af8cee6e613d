import {execFile} from 'node:child_process';
import {chown, mkdir, readFile, stat} from 'node:fs/promises';
import {dirname, join as joinPath, resolve} from 'node:path';
import {promisify} from 'node:util';
import {runAgent} from '../agent.ts';
import {checkConfig, diskReader} from '../config/index.ts';
import {AgentError, reasonOf, systemCode} from '../errors.ts';
import {writeFileAtomic} from '../lifecycle/atomic-file.ts';
import {createLogger} from '../log.ts';
import {sendCommand} from '../status/index.ts';
import type {Command, Flags} from './index.ts';
import {loadFrom} from './load.ts';

const say = (text: string): boolean => process.stdout.write(`${text}\n`);

export const joinCommand: Command = {
	usage: 'join <bundle>',
	description: 'Join the mesh with a bundle that istioctl x workload entry configure wrote',
	hasSettings: true,
	options: yargs =>
		yargs
			.positional('bundle', {
				type: 'string',
				description: 'Directory with cluster.env, mesh.yaml, root-cert.pem, istio-token and hosts',
			})
			.option('install-to', {
				type: 'string',
				requiresArg: true,
				default: '/etc/onramp/bundle',
				description: 'Where the bundle is kept',
			})
			.option('install-only', {type: 'boolean', description: 'Keep the bundle, start nothing'}),
	run: async ({bundle, 'install-to': installTo, 'install-only': installOnly, ...flags}, signal) => {
		const source = resolve(String(bundle));
		const target = resolve(String(installTo));
		await checkBundle({...flags, bundle: source});
		const changed = source === target ? [] : await installBundle(source, target);
		say(`bundle: ${changed.length === 0 ? 'unchanged' : `${changed.join(', ')} installed`} in ${target}`);
		if (installOnly) return 0;

		const loaded = await loadFrom({...flags, bundle: target});
		const running = await sendCommand(loaded.config.status.controlSocketPath, 'retry').then(
			() => true,
			() => false,
		);
		if (running && changed.every(file => file === 'istio-token')) {
			say('the running agent has the new token; onramp status --wait 30s');
			return 0;
		}
		if (await hasService()) {
			say('starting the service: systemctl restart onramp');
			await promisify(execFile)('systemctl', ['enable', '--now', 'onramp']);
			await promisify(execFile)('systemctl', ['restart', 'onramp']);
			say('onramp status --wait 30s');
			return 0;
		}
		if (running) {
			throw new AgentError('cli.usage', 'an agent is running with the earlier bundle', {
				hint: 'stop it and run onramp join again',
			});
		}
		say('no service is installed here: running in the foreground, Ctrl-C leaves the mesh');
		await runAgent(loaded, createLogger(loaded.config.log), signal);
		return 0;
	},
};

/** A bundle that cannot work is refused before anything is touched. */
async function checkBundle(flags: Flags): Promise<void> {
	const loaded = await loadFrom(flags);
	const problems = await checkConfig(loaded, diskReader);
	for (const {place, message} of problems.filter(({severity}) => severity === 'warning'))
		say(`warning: ${place}: ${message}`);
	const fatal = problems.filter(({severity}) => severity === 'error');
	if (fatal.length === 0) return;
	const text = fatal
		.map(({place, message, remedy}) => `\n  ${place}: ${message}${remedy ? `\n    → ${remedy}` : ''}`)
		.join('');
	throw new AgentError('config.invalid', `join with ${String(flags['bundle'])}: the bundle cannot be used${text}`, {
		hint: 'nothing was changed',
		fields: {problems: fatal},
	});
}

/** The token last: it is what makes a waiting agent try again. */
const files = ['cluster.env', 'mesh.yaml', 'root-cert.pem', 'hosts', 'istio-token'] as const;

/**
 * Copies the bundle file by file, each whole or not at all, and returns the names that differ from before. Readable by
 * the group that owns the parent folder, which is the agent's.
 */
async function installBundle(source: string, target: string): Promise<string[]> {
	const changed: string[] = [];
	try {
		await mkdir(target, {recursive: true, mode: 0o750});
		const {gid} = await stat(dirname(target));
		await chown(target, -1, gid);
		for (const file of files) {
			const content = await readOptional(joinPath(source, file));
			if (content === undefined) continue;
			const path = joinPath(target, file);
			if ((await readOptional(path))?.equals(content)) continue;
			await writeFileAtomic(path, content, 0o640);
			await chown(path, -1, gid);
			changed.push(file);
		}
	} catch (cause) {
		throw new AgentError('config.unreadable', `install bundle into ${target}: ${reasonOf(cause)}`, {
			cause,
			hint: 'run it as root, or name another place with --install-to',
		});
	}
	return changed;
}

async function readOptional(path: string): Promise<Buffer | undefined> {
	try {
		return await readFile(path);
	} catch (error) {
		if (systemCode(error) === 'ENOENT') return undefined;
		throw error;
	}
}

/** Whether systemd runs here and knows the service. */
async function hasService(): Promise<boolean> {
	try {
		await stat('/run/systemd/system');
		await promisify(execFile)('systemctl', ['cat', 'onramp.service']);
		return true;
	} catch {
		// No systemd, or no such unit: then there is nothing to hand over to.
		return false;
	}
}
