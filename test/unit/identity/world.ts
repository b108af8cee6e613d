import {chmod, mkdir, mkdtemp, rm, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import type {ExecutionContext} from 'ava';
import type {IdentityConfig} from '../../../src/config/types.ts';
import {AgentError} from '../../../src/errors.ts';
import {
	type CertificateRequest,
	createTokenSource,
	type Identity,
	type IdentityDeps,
	startIdentity,
	type WorkloadCertificate,
} from '../../../src/identity/index.ts';
import {Metrics, Readiness} from '../../../src/lifecycle/index.ts';
import {silentLogger} from '../../../src/log.ts';
import {FakeClock} from '../../support/fake-clock.ts';
import {createCa, renderToken, type TestCa} from './test-ca.ts';

export const second = 1000;
export const minute = 60 * second;
export const hour = 60 * minute;
export const spiffeId = 'spiffe://cluster.local/ns/bar/sa/vm';

export type Answer = (request: CertificateRequest, signal: AbortSignal) => Promise<readonly string[]>;

/** A machine with its disk, a clock, a CA and a token, on which the agent can be started and stopped. */
export interface World {
	readonly dir: string;
	readonly clock: FakeClock;
	readonly ca: TestCa;
	readonly config: IdentityConfig;
	readonly metrics: Metrics;
	readonly readiness: Readiness;
	readonly requests: CertificateRequest[];
	/** What the control plane does; signs by default. */
	answer: Answer;
	readonly sign: Answer;
	start(change?: Partial<IdentityConfig>, deps?: Partial<IdentityDeps>): Promise<Identity>;
	/** Writes a token that lives this long. */
	putToken(lifeMs?: number, claims?: Record<string, unknown>): Promise<void>;
	/** Lets time pass in small steps until the condition holds. */
	until<T>(condition: () => T | undefined | false): Promise<T>;
}

export async function createWorld(t: ExecutionContext, lifeMs = 24 * hour): Promise<World> {
	const dir = await mkdtemp(join(tmpdir(), 'onramp-identity-'));
	t.teardown(() => rm(dir, {recursive: true, force: true}));
	const clock = new FakeClock();
	const ca = await createCa();
	const readiness = new Readiness(['identity'], () => clock.now());
	const metrics = new Metrics();
	const requests: CertificateRequest[] = [];
	const tokenPath = join(dir, 'token');
	const config: IdentityConfig = {
		source: {kind: 'control-plane'},
		keyType: 'ecdsa-p256',
		certificateLifetimeMs: lifeMs,
		rotateAtShare: 0.5,
		rotateJitter: 0.1,
		rideOutMs: 0,
		retryMaxMs: minute,
		trialDelayMs: minute,
		stateDir: join(dir, 'identity'),
		outputDir: undefined,
		certSigner: '',
		outputKeyMode: 0o600,
	};
	const sign: Answer = async ({csrPem, lifetimeMs}) => {
		const life = {notBefore: clock.now(), notAfter: new Date(clock.now().getTime() + lifetimeMs)};
		return [await ca.sign(csrPem, [spiffeId], life), ca.pem];
	};
	const world: World = {
		dir,
		clock,
		ca,
		config,
		metrics,
		readiness,
		requests,
		sign,
		answer: sign,
		start: async (change = {}, deps = {}) => {
			const identity = await startIdentity(
				{
					config: {...config, ...change},
					workload: {trustDomain: 'cluster.local', namespace: 'bar', serviceAccount: 'vm'},
					token: createTokenSource({tokenPath}, {audience: 'istio-ca', clock, signal: new AbortController().signal}),
					requestCertificate: (request, signal) => {
						requests.push(request);
						return world.answer(request, signal);
					},
					clock,
					random: () => 0.5,
					log: silentLogger,
					gate: readiness.gate('identity'),
					metrics,
					...deps,
				},
				new AbortController().signal,
			);
			t.teardown(() => identity.stop());
			return identity;
		},
		putToken: async (tokenLifeMs = hour, claims = {}) => {
			const exp = Math.floor((clock.now().getTime() + tokenLifeMs) / 1000);
			const text = renderToken({aud: ['istio-ca'], sub: 'system:serviceaccount:bar:vm', exp, ...claims});
			await writeFile(tokenPath, `${text}\n`);
		},
		until: async condition => {
			const deadline = Date.now() + 60_000;
			for (;;) {
				const value = condition();
				if (value !== undefined && value !== false) return value;
				if (Date.now() > deadline) throw new Error(`never came true: ${condition}`);
				await clock.advance(100);
				await new Promise(resolve => setTimeout(resolve, 1));
			}
		},
	};
	return world;
}

/** Waits in real time, for what does not depend on the clock. */
export async function eventually(condition: () => boolean | Promise<boolean>): Promise<void> {
	const deadline = Date.now() + 60_000;
	while (!(await condition())) {
		if (Date.now() > deadline) throw new Error(`never came true: ${condition}`);
		await new Promise(resolve => setTimeout(resolve, 2));
	}
}

/** The first certificate after a start. */
export async function joined(world: World, identity: Identity): Promise<WorkloadCertificate> {
	return world.until(() => identity.current());
}

export function refusal(code: AgentError['code']): Answer {
	return async () => {
		throw new AgentError(code, `request certificate: ${code}`, {hint: 'do something'});
	};
}

export async function makeDir(path: string, mode: number): Promise<void> {
	await mkdir(path, {recursive: true});
	await chmod(path, mode);
}
