import {existsSync, mkdirSync, readFileSync} from 'node:fs';
import {dirname} from 'node:path';
import type {ProxyConfig} from '../config/types.ts';
import {AgentError, reasonOf} from '../errors.ts';
import type {AdminClient} from './admin.ts';
import {checkBinary} from './binary.ts';
import {checkPortsFree} from './ports.ts';
import {writePrivateFile} from './private-file.ts';

export interface StartInput {
	readonly config: ProxyConfig;
	/** As text. */
	readonly bootstrap: string;
	readonly admin: Pick<AdminClient, 'socketPath' | 'ready'>;
	/** By the Envoy that is to be replaced. */
	readonly mayPortsBeTaken?: boolean;
}

/**
 * Sees to all that Envoy needs for its start, and returns what tells its binary from another, see `checkBinary`.
 * @throws AgentError for what is missing; all of it can come right by itself or by somebody's hand, so it is waited for
 */
export async function prepareStart({config, bootstrap, admin, mayPortsBeTaken = false}: StartInput): Promise<string> {
	const binary = checkBinary(config.binaryPath);
	writeFiles(config, bootstrap);
	await refuseSharedAdmin(admin);
	if (mayPortsBeTaken) return binary;
	checkPortsFree(config.listenAddress, {
		...(config.readinessPort === 0 ? {} : {readiness: config.readinessPort}),
		...(config.metricsPort === 0 ? {} : {metrics: config.metricsPort}),
	});
	return binary;
}

function writeFiles(config: ProxyConfig, bootstrap: string): void {
	try {
		mkdirSync(dirname(config.adminSocketPath), {recursive: true, mode: 0o700});
		// Not written again when it is there: a full disk then does not keep Envoy from starting.
		if (!isContent(config.bootstrapPath, bootstrap)) writePrivateFile(config.bootstrapPath, bootstrap);
	} catch (cause) {
		throw new AgentError('proxy.state_unusable', `start envoy: write its files: ${reasonOf(cause)}`, {
			cause,
			hint: 'check that the disk has room and the folder belongs to the agent',
		});
	}
}

/** The new Envoy would take the socket's name away from one that still runs. */
async function refuseSharedAdmin(admin: StartInput['admin']): Promise<void> {
	// The common case, and the only one that costs no turn of the event loop: what is spawned at once starts at once.
	if (!existsSync(admin.socketPath)) return;
	const isAnswered = await admin.ready().then(
		() => true,
		() => false,
	);
	if (!isAnswered) return;
	throw new AgentError('proxy.admin_failed', `start envoy: another envoy answers on ${admin.socketPath}`, {
		hint: `stop it, or set another proxy.admin-socket; to see who it is: ss -xlp | grep ${admin.socketPath}`,
	});
}

function isContent(path: string, text: string): boolean {
	try {
		return readFileSync(path, 'utf8') === text;
	} catch {
		return false; // Writing it tells what is wrong.
	}
}
