import type {ExecutionContext} from 'ava';
import {type Load, type LoadResult, startLoad} from './load.ts';
import {type Mesh, until} from './mesh.ts';

export interface Loads {
	results(): Readonly<Record<string, LoadResult>>;
	/** Waits until each has sent some more. */
	untilMore(count: number): Promise<void>;
	stop(): Promise<Readonly<Record<string, LoadResult>>>;
}

/**
 * The traffic of a working mesh, both ways: requests with a connection each, over HTTP and, for a mutual TLS handshake
 * each, over TCP; connections that are used again; and one TCP connection that must last.
 */
export function startLoads(t: ExecutionContext, mesh: Mesh, perSecond = 25): Loads {
	const loads: Record<string, Load> = {
		'vm → cluster, http': startLoad({port: mesh.port('vm', 'cluster'), perSecond}),
		'cluster → vm, http': startLoad({port: mesh.port('cluster', 'vm'), perSecond}),
		'vm → cluster, tcp': startLoad({port: mesh.port('vm', 'cluster', 'tcp'), perSecond}),
		'cluster → vm, tcp': startLoad({port: mesh.port('cluster', 'vm', 'tcp'), perSecond}),
		'cluster → vm, kept': startLoad({port: mesh.port('cluster', 'vm'), perSecond, connections: 'kept'}),
		'vm → cluster, one': startLoad({port: mesh.port('vm', 'cluster', 'tcp'), perSecond: 5, connections: 'one'}),
	};
	t.teardown(() => Promise.all(Object.values(loads).map(load => load.stop())));
	const results = () => Object.fromEntries(Object.entries(loads).map(([name, load]) => [name, load.result()]));
	return {
		results,
		untilMore: async count => {
			const before = results();
			await until('more requests', () =>
				Object.entries(results()).every(([name, {sent}]) => sent >= before[name]!.sent + count),
			);
		},
		stop: async () => {
			await Promise.all(Object.values(loads).map(load => load.stop()));
			return results();
		},
	};
}

/** Fails with the first request that was lost; logs what was sent. */
export function assertNoneFailed(t: ExecutionContext, results: Readonly<Record<string, LoadResult>>): void {
	for (const [name, {sent, failed, firstFailure, connections}] of Object.entries(results)) {
		t.is(failed, 0, `${name}: ${failed} of ${sent} failed, first: ${firstFailure}`);
		t.true(sent > 0, `${name}: nothing was sent`);
		if (name.endsWith('one')) t.is(connections, 1, `${name}: the connection was lost`);
	}
	const total = Object.values(results).reduce((sum, {sent}) => sum + sent, 0);
	const gapMs = Math.max(...Object.values(results).map(({longestGapMs}) => longestGapMs));
	t.log(`${total} requests, none failed, longest gap ${gapMs} ms`);
}
