import {AgentError} from '../errors.ts';
import type {Identity, IdentityDeps} from './types.ts';

export async function startIdentity(_deps: IdentityDeps, _signal: AbortSignal): Promise<Identity> {
	throw new AgentError('internal', 'start identity: not built');
}
