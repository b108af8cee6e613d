import {mkdtemp, readFile, rm} from 'node:fs/promises';
import {join} from 'node:path';
import {freePorts} from '../../src/sandbox/local-workload.ts';
import type {Agent} from './agent.ts';
import {ControlPlane} from './control-plane-client.ts';
import {createOnramp, onrampNode} from './onramp.ts';
import {createPeer, peerNode} from './peer.ts';
import type {Row} from './rows.ts';

/** Whose turn it is. `peer-ecdsa`: with the kind of key that onramp makes, instead of its default. */
export type Contender = 'onramp' | 'peer' | 'peer-ecdsa';

export interface Bench {
	readonly directory: string;
	readonly envoyPath: string;
	readonly peer: {readonly binaryPath: string; readonly templatePath: string} | undefined;
	readonly profileDirectory: string | undefined;
	readonly isQuick: boolean;
	/** A progress line. */
	readonly say: (line: string) => void;
	readonly report: (row: Row) => void;
	/** Whether `--only` wants rows whose id begins so, or may. */
	readonly wants: (prefix: string) => boolean;
}

/** Those that take part, in the order of their turns. */
export function contenders({peer}: Bench, ...more: Contender[]): readonly Contender[] {
	return peer ? ['onramp', 'peer', ...more] : ['onramp'];
}

export async function startControlPlane(bench: Bench, hasIstioExtensions: boolean): Promise<ControlPlane> {
	const [appPort, ...ports] = await freePorts(5);
	const [onrampOut, onrampIn, peerOut, peerIn] = ports as [number, number, number, number];
	return ControlPlane.start({
		bundleDirectory: await mkdtemp(join(bench.directory, 'bundle-')),
		appPort: appPort!,
		sandbox: {
			istioExtensions: hasIstioExtensions,
			// An entry that goes is a change of the mesh, and would be pushed into somebody else's turn.
			gracePeriodMs: 24 * 3600_000,
			ports: {
				[onrampNode.name]: {outbound: onrampOut, inbound: onrampIn, interception: 'none'},
				[peerNode.name]: {outbound: peerOut, inbound: peerIn, interception: 'none'},
			},
		},
	});
}

export async function withControlPlane(
	bench: Bench,
	act: (plane: ControlPlane) => Promise<void>,
	{hasIstioExtensions = false} = {},
): Promise<void> {
	const plane = await startControlPlane(bench, hasIstioExtensions);
	try {
		await act(plane);
	} finally {
		await plane.stop();
	}
}

/** A fresh VM for one turn; all of it is gone afterwards, unless it failed: then its log is shown. */
export async function withAgent<T>(
	bench: Bench,
	plane: ControlPlane,
	who: Contender,
	act: (agent: Agent) => Promise<T>,
	{resolvConfPath}: {readonly resolvConfPath?: string} = {},
): Promise<T> {
	const directory = await mkdtemp(join(bench.directory, `${who}-`));
	const {bundle} = plane;
	const {envoyPath, profileDirectory} = bench;
	const agent =
		who === 'onramp'
			? await createOnramp({directory, bundle, envoyPath, profileDirectory, resolvConfPath})
			: await createPeer({
					...bench.peer!,
					directory,
					bundle,
					envoyPath,
					controlPlanePort: plane.port,
					resolvConfPath,
					keyType: who === 'peer-ecdsa' ? 'ecdsa-p256' : undefined,
				});
	try {
		const result = await act(agent);
		if (profileDirectory) await agent.stop();
		return result;
	} catch (error) {
		const log = await readFile(agent.logPath, 'utf8').catch(() => '');
		throw new Error(`${agent.label}: ${error instanceof Error ? error.message : String(error)}\n${log.slice(-3000)}`, {
			cause: error,
		});
	} finally {
		await agent.destroy();
		await rm(directory, {recursive: true, force: true, maxRetries: 5});
	}
}
